// Constrained output: OpenAI's response_format, structured_outputs, and the older guided_* fields.
#include "api/openai/json_writer.h"
#include "api/openai/request_fields.h"

namespace manta::api {
namespace {

using R = GenerateRequest;
using sample::GrammarKind;
using sample::GrammarSpec;

// A schema or grammar this long is no constraint any more but an attack on the compiler behind it.
constexpr size_t kMaxGrammarBytes = 1 << 20;

Problem set_grammar(R& r, std::string_view field, GrammarKind kind, std::string text) {
  if (r.grammar.kind != GrammarKind::kNone) {
    return bad_value(field,
                     "You can only use one kind of constraint for structured outputs (json, regex, choice, "
                     "grammar, json_object, structural_tag).");
  }
  if (text.size() > kMaxGrammarBytes) {
    return bad_value(field, fmt::format("{} is {} bytes long, at most {}.", field, text.size(), kMaxGrammarBytes));
  }
  r.grammar.kind = kind;
  r.grammar.text = std::move(text);
  return {};
}

// A schema is an object, or the same as a string.
Problem read_schema(Json value, std::string_view field, R& r) {
  std::string text;
  if (value.is_string()) {
    if (auto problem = read_string(value, field, text)) return problem;
    simdjson::dom::parser parser;
    if (parser.allocate(text.size() + 1, JsonParser::kMaxDepth) != simdjson::SUCCESS || parser.parse(text).error()) {
      return bad_value(field, fmt::format("{} is a string that holds no JSON schema.", field));
    }
  } else {
    simdjson::dom::object object;
    if (auto problem = read_object(value, field, object)) return problem;
    text = json_text(value);
  }
  return set_grammar(r, field, GrammarKind::kJsonSchema, std::move(text));
}

Problem read_text_grammar(Json value, std::string_view field, GrammarKind kind, R& r) {
  std::string text;
  if (auto problem = read_string(value, field, text)) return problem;
  if (text.empty()) return bad_value(field, fmt::format("{} must not be empty.", field));
  return set_grammar(r, field, kind, std::move(text));
}

Problem read_choice(Json value, std::string_view field, R& r) {
  std::vector<std::string> choices;
  if (auto problem = read_strings(value, field, choices)) return problem;
  if (choices.empty()) return bad_value(field, fmt::format("{} must not be empty.", field));
  return set_grammar(r, field, GrammarKind::kChoice, json_text(value));
}

Problem read_json_object(Json value, std::string_view field, R& r) {
  bool wanted = false;
  if (auto problem = read_bool(value, field, wanted)) return problem;
  if (!wanted) return {};
  return set_grammar(r, field, GrammarKind::kJsonObject, "");
}

Problem read_structural_tag(Json value, std::string_view field, R& r) {
  std::string text;
  if (value.is_string()) {
    if (auto problem = read_string(value, field, text)) return problem;
  } else {
    simdjson::dom::object object;
    if (auto problem = read_object(value, field, object)) return problem;
    text = json_text(value);
  }
  return set_grammar(r, field, GrammarKind::kStructuralTag, std::move(text));
}

Problem read_json_schema_format(simdjson::dom::object format, R& r) {
  simdjson::dom::object json_schema;
  if (format["json_schema"].get(json_schema) != simdjson::SUCCESS) {
    return bad_value("response_format", "response_format of type json_schema needs json_schema: {name, schema}.");
  }
  for (const char* key : {"schema", "json_schema"}) {  // vLLM takes both
    Json schema;
    if (json_schema[key].get(schema) == simdjson::SUCCESS && !schema.is_null()) {
      return read_schema(schema, "response_format.json_schema.schema", r);
    }
  }
  return bad_value("response_format.json_schema.schema", "response_format.json_schema.schema is missing.");
}

Problem read_response_format(Json value, R& r) {
  simdjson::dom::object format;
  if (auto problem = read_object(value, "response_format", format)) return problem;
  std::string_view type;
  if (format["type"].get(type) != simdjson::SUCCESS) {
    return bad_shape("response_format.type", "response_format.type: field required");
  }
  if (type == "text") return {};
  if (type == "json_object") return set_grammar(r, "response_format", GrammarKind::kJsonObject, "");
  if (type == "json_schema") return read_json_schema_format(format, r);
  if (type == "structural_tag") {
    return set_grammar(r, "response_format", GrammarKind::kStructuralTag, json_text(value));
  }
  return bad_value("response_format.type",
                   fmt::format("response_format.type must be text, json_object, json_schema or structural_tag, got "
                               "\"{}\".",
                               type));
}

Problem read_structured_option(std::string_view key, Json value, R& r) {
  if (key == "json") return read_schema(value, "structured_outputs.json", r);
  if (key == "regex") return read_text_grammar(value, "structured_outputs.regex", GrammarKind::kRegex, r);
  if (key == "choice") return read_choice(value, "structured_outputs.choice", r);
  if (key == "grammar") return read_text_grammar(value, "structured_outputs.grammar", GrammarKind::kEbnf, r);
  if (key == "json_object") return read_json_object(value, "structured_outputs.json_object", r);
  if (key == "structural_tag") return read_structural_tag(value, "structured_outputs.structural_tag", r);
  if (key == "disable_any_whitespace") {
    bool disabled = false;
    if (auto problem = read_bool(value, "structured_outputs.disable_any_whitespace", disabled)) return problem;
    r.grammar.any_whitespace = !disabled;
    return {};
  }
  if (key == "disable_additional_properties" || key == "whitespace_pattern") {
    bool flag = true;
    if (value.get(flag) == simdjson::SUCCESS && !flag) return {};
    return not_implemented("structured_outputs", fmt::format("structured_outputs.{} is not served.", key));
  }
  return {};
}

Problem read_structured_outputs(Json value, R& r) {
  simdjson::dom::object object;
  if (auto problem = read_object(value, "structured_outputs", object)) return problem;
  for (const auto& [key, option] : object) {
    if (option.is_null()) continue;
    if (auto problem = read_structured_option(key, option, r)) return problem;
  }
  if (r.grammar.kind == GrammarKind::kNone) {
    return bad_value("structured_outputs",
                     "You must use one kind of constraint for structured outputs (json, regex, choice, grammar, "
                     "json_object, structural_tag).");
  }
  return {};
}

constexpr Field<R> kFields[] = {
    {"response_format", read_response_format},
    {"structured_outputs", read_structured_outputs},
    {"guided_json", [](Json v, R& r) { return read_schema(v, "guided_json", r); }},
    {"guided_regex", [](Json v, R& r) { return read_text_grammar(v, "guided_regex", GrammarKind::kRegex, r); }},
    {"guided_choice", [](Json v, R& r) { return read_choice(v, "guided_choice", r); }},
    {"guided_grammar", [](Json v, R& r) { return read_text_grammar(v, "guided_grammar", GrammarKind::kEbnf, r); }},
    {"guided_json_object", [](Json v, R& r) { return read_json_object(v, "guided_json_object", r); }},
    {"structural_tag", [](Json v, R& r) { return read_structural_tag(v, "structural_tag", r); }},
    // There is one grammar engine, whichever was asked for; vLLM 0.11 ignores the name as well.
    {"guided_decoding_backend",
     [](Json v, R&) {
       std::string ignored;
       return read_string(v, "guided_decoding_backend", ignored);
     }},
    {"guided_whitespace_pattern",
     [](Json, R&) -> Problem {
       return not_implemented("guided_whitespace_pattern", "guided_whitespace_pattern is not served.");
     }},
};

}  // namespace

std::span<const Field<GenerateRequest>> constraint_fields() {
  return kFields;
}

}  // namespace manta::api
