#include "text/tokenizer_config.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <filesystem>

#include "text/file.h"

namespace manta::text {

namespace {

using simdjson::dom::element;
using simdjson::dom::object;

Error bad(std::string message) {
  return error(ErrorCode::kInvalidArgument, "tokenizer_config.json: " + std::move(message));
}

// "<tok>" or {"content": "<tok>", …} or null.
Status read_token(object doc, std::string_view key, std::string& out) {
  element value;
  if (doc[key].get(value) != simdjson::SUCCESS || value.is_null()) return {};
  object token;
  if (value.get(token) == simdjson::SUCCESS && token["content"].get(value) != simdjson::SUCCESS) {
    return bad(fmt::format("{} has no content", key));
  }
  std::string_view text;
  if (value.get(text) != simdjson::SUCCESS) return bad(fmt::format("{} is neither a string nor an added token", key));
  out = text;
  return {};
}

Status read_bool(object doc, std::string_view key, std::optional<bool>& out) {
  element value;
  if (doc[key].get(value) != simdjson::SUCCESS || value.is_null()) return {};
  bool flag = false;
  if (value.get(flag) != simdjson::SUCCESS) return bad(fmt::format("{} is not true or false", key));
  out = flag;
  return {};
}

Status read_template(object doc, std::string& out) {
  element value;
  if (doc["chat_template"].get(value) != simdjson::SUCCESS || value.is_null()) return {};
  std::string_view text;
  if (value.get(text) == simdjson::SUCCESS) {
    out = text;
    return {};
  }
  simdjson::dom::array named;
  if (value.get(named) != simdjson::SUCCESS) return bad("chat_template is neither a string nor a list");
  for (const auto item : named) {
    std::string_view name;
    if (item["name"].get(name) == simdjson::SUCCESS && name == "default" &&
        item["template"].get(text) == simdjson::SUCCESS) {
      out = text;
      return {};
    }
  }
  return bad("chat_template is a list without a template named 'default'");
}

}  // namespace

Result<TokenizerConfig> parse_tokenizer_config(std::string_view json) {
  simdjson::dom::parser parser;
  object doc;
  if (const auto code = parser.parse(json.data(), json.size()).get(doc); code != simdjson::SUCCESS) {
    return bad(fmt::format("not a JSON object: {}", simdjson::error_message(code)));
  }
  TokenizerConfig config;
  MANTA_TRY(read_token(doc, "tokenizer_class", config.tokenizer_class));
  MANTA_TRY(read_token(doc, "bos_token", config.bos_token));
  MANTA_TRY(read_token(doc, "eos_token", config.eos_token));
  MANTA_TRY(read_token(doc, "pad_token", config.pad_token));
  MANTA_TRY(read_bool(doc, "add_bos_token", config.add_bos_token));
  MANTA_TRY(read_bool(doc, "add_eos_token", config.add_eos_token));
  MANTA_TRY(read_template(doc, config.chat_template));
  return config;
}

Result<TokenizerConfig> load_tokenizer_config(const std::string& model_dir) {
  const std::filesystem::path dir(model_dir);
  MANTA_ASSIGN(const std::string json, read_file((dir / "tokenizer_config.json").string()));
  MANTA_ASSIGN(TokenizerConfig config, parse_tokenizer_config(json));
  auto separate = read_file((dir / "chat_template.jinja").string());
  if (separate.ok()) {
    config.chat_template = std::move(separate).value();
  } else if (separate.error().code != ErrorCode::kNotFound) {
    return separate.error();
  }
  return config;
}

}  // namespace manta::text
