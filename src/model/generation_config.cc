#include "model/generation_config.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <string_view>

#include "model/file.h"
#include "model/json_keys.h"

namespace manta::model {

namespace {

constexpr size_t kMaxBytes = 1 << 20;
constexpr std::string_view kQuiet[] = {"_from_model_config", "bos_token_id", "pad_token_id", "transformers_version",
                                       "use_cache"};

std::optional<float> optional_number(JsonKeys& keys, const char* key, double low, double high) {
  if (!keys.has(key)) return {};
  return static_cast<float>(keys.number(key, low, high));
}

std::optional<int> optional_integer(JsonKeys& keys, const char* key, int64_t low, int64_t high) {
  if (!keys.has(key)) return {};
  return keys.integer(key, low, high);
}

}  // namespace

Result<GenerationConfig> parse_generation_config(std::string_view text, int vocab_size) {
  const std::string what = "generation_config.json";
  MANTA_ASSIGN(const nlohmann::json object, parse_json_object(text, what, kMaxBytes));
  JsonKeys keys(object, what);
  GenerationConfig config;
  config.temperature = optional_number(keys, "temperature", 0.0, 100.0);
  config.top_p = optional_number(keys, "top_p", 0.0, 1.0);
  config.top_k = optional_integer(keys, "top_k", 0, INT32_MAX);
  config.min_p = optional_number(keys, "min_p", 0.0, 1.0);
  config.repetition_penalty = optional_number(keys, "repetition_penalty", 1e-3, 1e3);
  config.max_new_tokens = optional_integer(keys, "max_new_tokens", 1, INT32_MAX);
  config.eos_token_ids = keys.integers("eos_token_id", 0, vocab_size - 1);
  if (!keys.boolean("do_sample", true) && !config.temperature) config.temperature = 0.0f;
  MANTA_TRY(keys.status());
  // Only defaults stand here, no arithmetic: what is not known is said and left out.
  for (const auto& [key, value] : object.items()) {
    if (value.is_null() || keys.was_read(key)) continue;
    if (std::find(std::begin(kQuiet), std::end(kQuiet), key) == std::end(kQuiet)) {
      config.notes.push_back(what + ": " + key + " is not a default manta knows and was ignored");
    }
  }
  return config;
}

Result<GenerationConfig> load_generation_config(const std::string& folder, int vocab_size) {
  const std::string path = (std::filesystem::path(folder) / "generation_config.json").string();
  auto text = read_small_file(path, kMaxBytes);
  if (!text.ok() && text.error().code == ErrorCode::kNotFound) return GenerationConfig{};
  MANTA_TRY(text);
  auto config = parse_generation_config(*text, vocab_size);
  if (config.ok()) return config;
  return error(config.error().code, folder + ": " + config.error().message);
}

}  // namespace manta::model
