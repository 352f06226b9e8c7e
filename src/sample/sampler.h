// How one row of logits becomes a token: the definition that every backend's sampler must match.
//
// The order is vLLM's (0.11, v1/sample/sampler.py): grammar bitmask, allowed_token_ids, bad_words, min_tokens,
// logit_bias, repetition, frequency and presence penalty; then, unless greedy, temperature, min_p, top_k, top_p and
// the draw. Wherever two tokens are equal the lower id wins, so that top_k 1 is greedy and no sort order shows.
//
// The draw is Gumbel-max: argmax over the tokens that are left of z + g, z = (logit - max) / temperature,
// g = -log(-log u), u from Philox keyed by (seed, position, token id); see philox.h. Not inverse CDF, because
//   - an argmax needs no running sum, so a GPU reduces it in any order and gets the CPU's token;
//   - noise belongs to a token, so a token that a filter removes or a kernel computes a little differently moves no
//     other token's threshold;
//   - a draft made with the noise of the position it guesses agrees with the target as often as can be.
// g is evaluated in double; z and everything before it in float.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/ids.h"
#include "sample/sampling_params.h"

namespace manta::sample {

enum class RowFault : uint8_t {
  kNone,
  kNotFinite,       // the model's logits hold a NaN or an infinity
  kNothingAllowed,  // grammar, allowed_token_ids, bad_words and min_tokens leave no token
};
const char* to_string(RowFault fault);  // for the request's error message

// Everything that decides a row. Views; alive during the call. params passed validate() (sample/validate.h).
struct RowInput {
  std::span<const float> logits;            // [V], as the model gave them
  const SamplingParams* params = nullptr;   //
  std::span<const TokenId> tokens;          // the sequence so far, ids in [0, V); this row chooses tokens[size()]
  int num_prompt_tokens = 0;                // tokens[0, num_prompt_tokens) are the prompt
  std::span<const uint32_t> token_bitmask;  // bit t of word t / 32 allows token t; empty = all allowed
};

struct RowChoice {
  TokenId token = -1;  // -1 when there is a fault
  RowFault fault = RowFault::kNone;
};

// Holds the scratch of one thread; allocates when made and never after.
class RowSampler {
 public:
  explicit RowSampler(int vocab_size);
  ~RowSampler();
  RowSampler(RowSampler&&) noexcept;
  RowSampler& operator=(RowSampler&&) noexcept;

  RowChoice choose(const RowInput& input);

  // Log probabilities of the model itself (before any mask, bias, penalty or temperature, as vLLM's raw_logprobs):
  // of `token`, then of the `num_best` most likely in falling order. `out` gets 1 + min(num_best, V) entries; give it
  // that capacity to keep this free of allocation. Logits that are not finite give NaN log probabilities.
  void logprobs(std::span<const float> logits, TokenId token, int num_best, TokenLogprobs& out);

 private:
  struct Scratch;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace manta::sample
