#include "text/tokenizer_json.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

namespace manta::text {

namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

// GPT-2's own split, which ByteLevel applies when use_regex is on.
constexpr std::string_view kGpt2Split = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Error bad(std::string message) {
  return error(ErrorCode::kInvalidArgument, "tokenizer.json: " + std::move(message));
}

Error refuse(std::string message) {
  return error(ErrorCode::kUnimplemented, "tokenizer.json: " + std::move(message) + ", which is not supported");
}

bool is_null_or_absent(object o, std::string_view key) {
  element value;
  return o[key].get(value) != simdjson::SUCCESS || value.is_null();
}

Result<object> object_at(object o, std::string_view key, std::string_view where) {
  object value;
  if (o[key].get(value) != simdjson::SUCCESS) return bad(fmt::format("{}.{} is not an object", where, key));
  return value;
}

Result<array> array_at(object o, std::string_view key, std::string_view where) {
  array value;
  if (o[key].get(value) != simdjson::SUCCESS) return bad(fmt::format("{}.{} is not an array", where, key));
  return value;
}

Result<std::string_view> string_at(object o, std::string_view key, std::string_view where) {
  std::string_view value;
  if (o[key].get(value) != simdjson::SUCCESS) return bad(fmt::format("{}.{} is not a string", where, key));
  return value;
}

Result<bool> bool_at(object o, std::string_view key, bool default_value, std::string_view where) {
  if (is_null_or_absent(o, key)) return default_value;
  bool value = default_value;
  if (o[key].get(value) != simdjson::SUCCESS) return bad(fmt::format("{}.{} is not true or false", where, key));
  return value;
}

Result<TokenId> to_token_id(element e, std::string_view what) {
  int64_t id = -1;
  if (e.get(id) != simdjson::SUCCESS || id < 0 || id > kMaxTokenId) {
    return bad(fmt::format("the id of {} is not an integer in [0, {}]", what, kMaxTokenId));
  }
  return static_cast<TokenId>(id);
}

Status only_keys(object o, std::initializer_list<std::string_view> known, std::string_view where) {
  for (const auto field : o) {
    if (std::find(known.begin(), known.end(), field.key) == known.end()) {
      return refuse(fmt::format("{} has the field '{}'", where, field.key));
    }
  }
  return {};
}

Result<std::string_view> type_of(object o, std::string_view where) {
  return string_at(o, "type", where);
}

Status parse_vocab(object model, TokenizerSpec& spec) {
  MANTA_ASSIGN(const object vocab, object_at(model, "vocab", "model"));
  spec.vocab.reserve(vocab.size());
  for (const auto field : vocab) {
    MANTA_ASSIGN(const TokenId id, to_token_id(field.value, fmt::format("token '{}'", field.key)));
    spec.vocab.emplace_back(field.key, id);
  }
  if (spec.vocab.empty()) return bad("model.vocab is empty");
  return {};
}

// Either "left right" or ["left", "right"].
Result<std::pair<std::string, std::string>> parse_merge(element e, size_t rank) {
  std::string_view text;
  if (e.get(text) == simdjson::SUCCESS) {
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      return bad(fmt::format("merge {} '{}' is not two tokens with a space between", rank, text));
    }
    return std::pair(std::string(text.substr(0, space)), std::string(text.substr(space + 1)));
  }
  array pair;
  std::string_view left, right;
  if (e.get(pair) != simdjson::SUCCESS || pair.size() != 2 || pair.at(0).get(left) != simdjson::SUCCESS ||
      pair.at(1).get(right) != simdjson::SUCCESS) {
    return bad(fmt::format("merge {} is not a pair of tokens", rank));
  }
  return std::pair(std::string(left), std::string(right));
}

Status parse_model(object model, TokenizerSpec& spec) {
  MANTA_ASSIGN(const auto type, type_of(model, "model"));
  if (type != "BPE") return refuse(fmt::format("the model is {}", type));
  // byte_fallback, fuse_unk and unk_token act on characters without a token; with all bytes in the vocabulary (which
  // Tokenizer checks) there are none.
  MANTA_TRY(only_keys(model,
                      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                       "byte_fallback", "ignore_merges", "vocab", "merges"},
                      "model"));
  if (!is_null_or_absent(model, "dropout")) return refuse("model.dropout is set");
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (is_null_or_absent(model, key)) continue;
    MANTA_ASSIGN(const auto affix, string_at(model, key, "model"));
    if (!affix.empty()) return refuse(fmt::format("model.{} is '{}'", key, affix));
  }
  MANTA_ASSIGN(const bool ignore_merges, bool_at(model, "ignore_merges", false, "model"));
  if (ignore_merges) return refuse("model.ignore_merges is on");
  MANTA_TRY(parse_vocab(model, spec));
  MANTA_ASSIGN(const array merges, array_at(model, "merges", "model"));
  spec.merges.reserve(merges.size());
  for (const auto merge : merges) {
    MANTA_ASSIGN(auto pair, parse_merge(merge, spec.merges.size()));
    spec.merges.push_back(std::move(pair));
  }
  return {};
}

Status parse_added_tokens(object doc, TokenizerSpec& spec) {
  if (is_null_or_absent(doc, "added_tokens")) return {};
  MANTA_ASSIGN(const array tokens, array_at(doc, "added_tokens", "file"));
  for (const auto item : tokens) {
    const std::string where = fmt::format("added_tokens[{}]", spec.added_tokens.size());
    object token;
    if (item.get(token) != simdjson::SUCCESS) return bad(where + " is not an object");
    MANTA_TRY(only_keys(token, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}, where));
    AddedToken added;
    MANTA_ASSIGN(const auto content, string_at(token, "content", where));
    added.content = content;
    if (added.content.empty()) return bad(where + ".content is empty");
    element id;
    if (token["id"].get(id) != simdjson::SUCCESS) return bad(where + ".id is missing");
    MANTA_ASSIGN(added.id, to_token_id(id, fmt::format("added token '{}'", content)));
    MANTA_ASSIGN(const bool single_word, bool_at(token, "single_word", false, where));
    if (single_word) return refuse(fmt::format("added token '{}' is single_word", content));
    MANTA_ASSIGN(added.lstrip, bool_at(token, "lstrip", false, where));
    MANTA_ASSIGN(added.rstrip, bool_at(token, "rstrip", false, where));
    MANTA_ASSIGN(added.special, bool_at(token, "special", false, where));
    MANTA_ASSIGN(added.normalized, bool_at(token, "normalized", !added.special, where));
    spec.added_tokens.push_back(std::move(added));
  }
  return {};
}

Status check_normalizer(object doc) {
  if (is_null_or_absent(doc, "normalizer")) return {};
  MANTA_ASSIGN(const object normalizer, object_at(doc, "normalizer", "file"));
  MANTA_ASSIGN(const auto type, type_of(normalizer, "normalizer"));
  if (type != "Sequence") return refuse(fmt::format("the normalizer is {}", type));
  MANTA_ASSIGN(const array steps, array_at(normalizer, "normalizers", "normalizer"));
  if (steps.size() != 0) return refuse("the normalizer is a Sequence that is not empty");
  return {};
}

Status parse_split(object step, TokenizerSpec& spec) {
  MANTA_TRY(only_keys(step, {"type", "pattern", "behavior", "invert"}, "pre_tokenizer Split"));
  // "invert" swaps matches and gaps, and Isolated makes pieces of both.
  MANTA_ASSIGN(const auto behavior, string_at(step, "behavior", "pre_tokenizer Split"));
  if (behavior != "Isolated") return refuse(fmt::format("a pre_tokenizer Split has the behavior {}", behavior));
  MANTA_ASSIGN(const object pattern, object_at(step, "pattern", "pre_tokenizer Split"));
  const bool is_literal = !is_null_or_absent(pattern, "String");
  MANTA_ASSIGN(const auto text, string_at(pattern, is_literal ? "String" : "Regex", "pre_tokenizer Split.pattern"));
  spec.splits.push_back({std::string(text), is_literal});
  return {};
}

Status parse_byte_level(object step, TokenizerSpec& spec) {
  MANTA_TRY(only_keys(step, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, "pre_tokenizer ByteLevel"));
  MANTA_ASSIGN(const bool prefix, bool_at(step, "add_prefix_space", true, "pre_tokenizer ByteLevel"));
  if (prefix) return refuse("pre_tokenizer ByteLevel.add_prefix_space is on");
  MANTA_ASSIGN(const bool use_regex, bool_at(step, "use_regex", true, "pre_tokenizer ByteLevel"));
  if (use_regex) spec.splits.push_back({std::string(kGpt2Split), false});
  return {};
}

// Split* ByteLevel, in a Sequence or ByteLevel alone.
Status parse_pre_tokenizer(object doc, TokenizerSpec& spec) {
  MANTA_ASSIGN(const object pre_tokenizer, object_at(doc, "pre_tokenizer", "file"));
  std::vector<object> steps{pre_tokenizer};
  MANTA_ASSIGN(const auto type, type_of(pre_tokenizer, "pre_tokenizer"));
  if (type == "Sequence") {
    steps.clear();
    MANTA_ASSIGN(const array items, array_at(pre_tokenizer, "pretokenizers", "pre_tokenizer"));
    for (const auto item : items) {
      if (item.get(steps.emplace_back()) != simdjson::SUCCESS) return bad("a pre_tokenizer is not an object");
    }
  }
  bool is_byte_level = false;
  for (const auto& step : steps) {
    MANTA_ASSIGN(const auto step_type, type_of(step, "pre_tokenizer"));
    if (is_byte_level) return refuse(fmt::format("a pre_tokenizer {} comes after ByteLevel", step_type));
    if (step_type == "Split") {
      MANTA_TRY(parse_split(step, spec));
    } else if (step_type == "ByteLevel") {
      MANTA_TRY(parse_byte_level(step, spec));
      is_byte_level = true;
    } else {
      return refuse(fmt::format("a pre_tokenizer is {}", step_type));
    }
  }
  if (!is_byte_level) return refuse("no pre_tokenizer is ByteLevel");
  return {};
}

Status parse_template(object processor, TokenizerSpec& spec) {
  MANTA_ASSIGN(const array pieces, array_at(processor, "single", "post_processor"));
  MANTA_ASSIGN(const object specials, object_at(processor, "special_tokens", "post_processor"));
  int num_sequences = 0;
  for (const auto item : pieces) {
    object piece;
    if (item.get(piece) != simdjson::SUCCESS) return bad("post_processor.single has a piece that is not an object");
    if (!is_null_or_absent(piece, "Sequence")) {
      ++num_sequences;
      continue;
    }
    MANTA_ASSIGN(const object special, object_at(piece, "SpecialToken", "post_processor.single"));
    MANTA_ASSIGN(const auto name, string_at(special, "id", "post_processor.single"));
    MANTA_ASSIGN(const object entry, object_at(specials, name, "post_processor.special_tokens"));
    MANTA_ASSIGN(const array ids, array_at(entry, "ids", "post_processor.special_tokens"));
    for (const auto id : ids) {
      MANTA_ASSIGN(const TokenId token, to_token_id(id, fmt::format("post_processor token '{}'", name)));
      (num_sequences == 0 ? spec.prefix : spec.suffix).push_back(token);
    }
  }
  if (num_sequences != 1) return bad(fmt::format("post_processor.single names {} sequences, not 1", num_sequences));
  return {};
}

Status parse_post_processor(object processor, TokenizerSpec& spec) {
  MANTA_ASSIGN(const auto type, type_of(processor, "post_processor"));
  if (type == "ByteLevel") return {};  // it moves offsets, not ids
  if (type == "TemplateProcessing") {
    if (!spec.prefix.empty() || !spec.suffix.empty()) return refuse("there are two TemplateProcessing post-processors");
    return parse_template(processor, spec);
  }
  if (type != "Sequence") return refuse(fmt::format("the post_processor is {}", type));
  MANTA_ASSIGN(const array steps, array_at(processor, "processors", "post_processor"));
  for (const auto item : steps) {
    object step;
    if (item.get(step) != simdjson::SUCCESS) return bad("a post_processor is not an object");
    MANTA_ASSIGN(const auto step_type, type_of(step, "post_processor"));
    if (step_type == "Sequence") return refuse("a post_processor Sequence is inside a Sequence");
    MANTA_TRY(parse_post_processor(step, spec));
  }
  return {};
}

Status check_decoder(object doc) {
  MANTA_ASSIGN(const object decoder, object_at(doc, "decoder", "file"));
  MANTA_ASSIGN(const auto type, type_of(decoder, "decoder"));
  if (type != "ByteLevel") return refuse(fmt::format("the decoder is {}", type));
  return {};
}

}  // namespace

Result<TokenizerSpec> parse_tokenizer_json(std::string_view json) {
  simdjson::dom::parser parser;
  object doc;
  if (const auto code = parser.parse(json.data(), json.size()).get(doc); code != simdjson::SUCCESS) {
    return bad(fmt::format("{} bytes that are not a JSON object: {}", json.size(), simdjson::error_message(code)));
  }
  MANTA_TRY(only_keys(doc,
                      {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                       "post_processor", "decoder", "model"},
                      "the file"));
  for (const std::string_view key : {"truncation", "padding"}) {
    if (!is_null_or_absent(doc, key)) return refuse(fmt::format("'{}' is set (write null)", key));
  }
  TokenizerSpec spec;
  MANTA_ASSIGN(const object model, object_at(doc, "model", "file"));
  MANTA_TRY(parse_model(model, spec));
  MANTA_TRY(parse_added_tokens(doc, spec));
  MANTA_TRY(check_normalizer(doc));
  MANTA_TRY(parse_pre_tokenizer(doc, spec));
  if (!is_null_or_absent(doc, "post_processor")) {
    MANTA_ASSIGN(const object processor, object_at(doc, "post_processor", "file"));
    MANTA_TRY(parse_post_processor(processor, spec));
  }
  MANTA_TRY(check_decoder(doc));
  return spec;
}

}  // namespace manta::text
