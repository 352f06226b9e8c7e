// The model as its users know it: names, tokenizer, sampling defaults. Loaded once, shared read-only by all loops.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/settings.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace manta::api {

// What a request that says nothing gets; from generation_config.json and override_generation_config.
struct SamplingDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k, max_tokens;
};

struct ServedModel {
  std::vector<std::string> names;  // never empty; the first is what answers say
  std::string root;
  int64_t created = 0;  // Unix seconds
  std::shared_ptr<const text::Tokenizer> tokenizer;
  text::TokenizerConfig tokenizer_config;
  std::shared_ptr<const text::ChatTemplate> chat_template;  // null: chat is not served
  TokenId reasoning_start = -1, reasoning_end = -1;         // <think> and </think>; -1 without reasoning parser
  size_t max_token_bytes = 1;                               // of the longest token
  std::vector<TokenId> eos_token_ids;
  std::string tokenizer_info;  // the body of /tokenizer_info; empty: not served
  SamplingDefaults defaults;

  bool answers_to(std::string_view name) const;
};

// Reads the checkpoint's folder. Errors name the file.
Result<ServedModel> load_served_model(const Settings& settings);

}  // namespace manta::api
