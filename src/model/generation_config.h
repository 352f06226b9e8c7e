// generation_config.json: the sampling defaults a checkpoint asks for, and more end tokens.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace manta::model {

// Absent = the API's own default. do_sample false means temperature 0 unless one is given.
struct GenerationConfig {
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int> top_k;  // 0 = all
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int> max_new_tokens;
  std::vector<TokenId> eos_token_ids;
  std::vector<std::string> notes;  // keys that were ignored, to be logged once
};

Result<GenerationConfig> parse_generation_config(std::string_view json, int vocab_size);

// <folder>/generation_config.json; defaults when there is none.
Result<GenerationConfig> load_generation_config(const std::string& folder, int vocab_size);

}  // namespace manta::model
