#include "api/openai/served_model.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "text/file.h"
#include "text/reasoning_parser.h"
#include "text/tool_parser.h"

namespace manta::api {
namespace {

namespace dom = simdjson::dom;

bool read_json(dom::parser& parser, const std::string& text, dom::object& out) {
  return parser.parse(text).get(out) == simdjson::SUCCESS;
}

template <typename T>
void read_optional(dom::object object, const char* key, std::optional<T>& out) {
  T value{};
  if (object[key].get(value) == simdjson::SUCCESS) out = value;
}

void read_defaults(dom::object config, SamplingDefaults& defaults) {
  read_optional(config, "temperature", defaults.temperature);
  read_optional(config, "top_p", defaults.top_p);
  read_optional(config, "min_p", defaults.min_p);
  read_optional(config, "repetition_penalty", defaults.repetition_penalty);
  read_optional(config, "top_k", defaults.top_k);
  read_optional(config, "max_new_tokens", defaults.max_tokens);
}

void add_eos(dom::object config, std::vector<TokenId>& ids) {
  const auto add = [&ids](dom::element value) {
    int64_t id = -1;
    if (value.get(id) != simdjson::SUCCESS || id < 0 || id > INT32_MAX) return;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(static_cast<TokenId>(id));
  };
  dom::element value;
  if (config["eos_token_id"].get(value) != simdjson::SUCCESS) return;
  dom::array list;
  if (value.get(list) != simdjson::SUCCESS) return add(value);
  for (const dom::element item : list) add(item);
}

// A file that is not there says nothing; one that is no JSON object is an error.
Status with_config(const std::string& path, const auto& use) {
  const auto text = text::read_file(path);
  if (!text.ok() && text.error().code == ErrorCode::kNotFound) return {};
  if (!text.ok()) return text.error();
  dom::parser parser;
  dom::object object;
  if (!read_json(parser, *text, object)) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: is no JSON object", path));
  }
  use(object);
  return {};
}

// vLLM: the tokenizer's EOS, those of generation_config.json and that of config.json all end an answer.
Status read_configs(const Settings& settings, ServedModel& model) {
  const auto eos = [&model](dom::object config) { add_eos(config, model.eos_token_ids); };
  const auto defaults = [&model](dom::object config) { read_defaults(config, model.defaults); };
  MANTA_TRY(with_config(model.root + "/config.json", eos));
  MANTA_TRY(with_config(model.root + "/generation_config.json", eos));
  if (settings.generation_config != "vllm") {
    const std::string& folder = settings.generation_config == "auto" ? model.root : settings.generation_config;
    MANTA_TRY(with_config(folder + "/generation_config.json", defaults));
  }
  dom::parser parser;
  dom::object overrides;
  if (read_json(parser, settings.override_generation_config.text, overrides)) read_defaults(overrides, model.defaults);
  if (const auto id = model.tokenizer->token_to_id(model.tokenizer_config.eos_token);
      id && std::find(model.eos_token_ids.begin(), model.eos_token_ids.end(), *id) == model.eos_token_ids.end()) {
    model.eos_token_ids.push_back(*id);
  }
  return {};
}

Status load_template(const Settings& settings, ServedModel& model) {
  std::string source = model.tokenizer_config.chat_template;
  if (settings.chat_template) {
    MANTA_ASSIGN(source, text::load_chat_template(*settings.chat_template));
  }
  if (source.empty()) return {};
  MANTA_ASSIGN(model.chat_template, text::ChatTemplate::parse(source, model.tokenizer_config));
  return {};
}

// tokenizer_config.json with the template that is in use.
Status load_tokenizer_info(const std::string& tokenizer_root, ServedModel& model) {
  MANTA_ASSIGN(const std::string text, text::read_file(tokenizer_root + "/tokenizer_config.json"));
  auto info = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (model.chat_template) info["chat_template"] = model.chat_template->source();
  model.tokenizer_info = info.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  return {};
}

}  // namespace

bool ServedModel::answers_to(std::string_view name) const {
  return name.empty() || std::find(names.begin(), names.end(), name) != names.end();
}

Result<ServedModel> load_served_model(const Settings& settings) {
  ServedModel model;
  model.names = settings.served_model_name;
  if (model.names.empty()) model.names.push_back(settings.model);
  model.root = settings.model;
  model.created = std::time(nullptr);
  const std::string tokenizer_root = settings.tokenizer.value_or(settings.model);
  MANTA_ASSIGN(model.tokenizer, text::Tokenizer::load(tokenizer_root));
  auto config = text::load_tokenizer_config(tokenizer_root);
  if (config.ok()) {
    model.tokenizer_config = std::move(config).value();
  } else if (config.error().code != ErrorCode::kNotFound) {
    return config.error();
  }
  MANTA_TRY(load_template(settings, model));
  if (settings.enable_tokenizer_info_endpoint) MANTA_TRY(load_tokenizer_info(tokenizer_root, model));
  if (settings.tool_call_parser) MANTA_TRY(text::ToolParser::check(*settings.tool_call_parser, *model.tokenizer));
  if (settings.reasoning_parser) {
    MANTA_TRY(text::ReasoningParser::check(*settings.reasoning_parser, *model.tokenizer));
    model.reasoning_start = *model.tokenizer->token_to_id(text::ReasoningParser::kStartMarker);
    model.reasoning_end = *model.tokenizer->token_to_id(text::ReasoningParser::kEndMarker);
  }
  for (TokenId id = 0; id < model.tokenizer->vocab_size(); ++id) {
    model.max_token_bytes = std::max(model.max_token_bytes, model.tokenizer->token_bytes(id).size());
  }
  MANTA_TRY(read_configs(settings, model));
  return model;
}

}  // namespace manta::api
