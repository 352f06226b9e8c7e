// How one request's tokens are chosen and when it ends. A value: it travels once from api to engine to device.
// Ranges are checked where requests enter (api); everything below relies on them.
// Every random choice is a pure function of (seed, position of the token in its sequence): the batch, the DP rank,
// preemption, resubmission and speculation change no token.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace manta::sample {

enum class GrammarKind : uint8_t { kNone, kJsonObject, kJsonSchema, kRegex, kChoice, kEbnf, kStructuralTag };

struct GrammarSpec {
  GrammarKind kind = GrammarKind::kNone;
  std::string text;  // the schema, expression or grammar; for kChoice a JSON array of strings
  bool any_whitespace = true;
  TokenId after_token = -1;  // >= 0: the grammar holds for what follows the first of these (it ends reasoning)
  bool operator==(const GrammarSpec&) const = default;
};

struct SamplingParams {
  float temperature = 1.0f;                           // 0 = greedy
  float top_p = 1.0f;                                 // (0, 1]
  int32_t top_k = 0;                                  // 0 = off
  float min_p = 0.0f;                                 // [0, 1]
  float presence_penalty = 0.0f;                      // [-2, 2], over tokens generated so far
  float frequency_penalty = 0.0f;                     // [-2, 2], over tokens generated so far
  float repetition_penalty = 1.0f;                    // > 0, over prompt and generated tokens
  uint64_t seed = 0;                                  // always set; drawn at admission when the user gave none
  std::vector<std::pair<TokenId, float>> logit_bias;  // clipped to [-100, 100]
  std::vector<TokenId> allowed_token_ids;             // empty = all
  std::vector<std::vector<TokenId>> bad_words;        // token sequences that must not be completed

  int32_t max_tokens = 16;  // generated tokens, >= 1, already clamped to the context
  int32_t min_tokens = 0;   // before this many, end and stop tokens are masked
  bool ignore_eos = false;
  std::vector<TokenId> eos_token_ids;   // of the model; ignored with ignore_eos
  std::vector<TokenId> stop_token_ids;  // of the request

  int32_t num_logprobs = -1;         // per generated token: -1 none, 0 the chosen one, n the n best as well
  int32_t num_prompt_logprobs = -1;  // per prompt token, likewise
  GrammarSpec grammar;

  bool greedy() const { return temperature == 0.0f; }
  bool has_penalties() const {
    return presence_penalty != 0.0f || frequency_penalty != 0.0f || repetition_penalty != 1.0f;
  }
};

// One row of log probabilities: the chosen (or prompt) token first, then the best in falling order.
struct TokenLogprobs {
  std::vector<TokenId> token_ids;
  std::vector<float> logprobs;
  int32_t rank = 0;  // of the first token in the whole vocabulary, 1 = most likely
};

}  // namespace manta::sample
