#include "sample/validate.h"

#include <fmt/format.h>

#include <cmath>
#include <span>

namespace manta::sample {
namespace {

Error invalid(const std::string& message) {
  return error(ErrorCode::kInvalidArgument, message);
}

Status check_range(const char* name, float value, float low, float high) {
  if (value >= low && value <= high) return {};  // false for NaN
  return invalid(fmt::format("{} {}: must be in [{}, {}]", name, value, low, high));
}

Status check_count(const char* name, size_t count, size_t most) {
  if (count <= most) return {};
  return invalid(fmt::format("{} holds {} token ids: at most {}", name, count, most));
}

Status check_ids(const char* name, std::span<const TokenId> ids, int vocab_size) {
  MANTA_TRY(check_count(name, ids.size(), static_cast<size_t>(vocab_size)));
  for (TokenId id : ids) {
    if (id < 0 || id >= vocab_size) {
      return invalid(fmt::format("{} holds token id {}: must be in [0, {})", name, id, vocab_size));
    }
  }
  return {};
}

Status check_numbers(const SamplingParams& p) {
  if (!(p.temperature >= 0.0f) || !std::isfinite(p.temperature)) {
    return invalid(fmt::format("temperature {}: must be finite and not negative", p.temperature));
  }
  if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) return invalid(fmt::format("top_p {}: must be in (0, 1]", p.top_p));
  if (p.top_k < 0) return invalid(fmt::format("top_k {}: must be 0 (off) or more", p.top_k));
  MANTA_TRY(check_range("min_p", p.min_p, 0.0f, 1.0f));
  MANTA_TRY(check_range("presence_penalty", p.presence_penalty, -2.0f, 2.0f));
  MANTA_TRY(check_range("frequency_penalty", p.frequency_penalty, -2.0f, 2.0f));
  if (!(p.repetition_penalty > 0.0f) || !std::isfinite(p.repetition_penalty)) {
    return invalid(fmt::format("repetition_penalty {}: must be finite and above 0", p.repetition_penalty));
  }
  if (p.max_tokens < 1) return invalid(fmt::format("max_tokens {}: must be at least 1", p.max_tokens));
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens) {
    return invalid(fmt::format("min_tokens {}: must be in [0, max_tokens {}]", p.min_tokens, p.max_tokens));
  }
  if (p.num_logprobs < -1) return invalid(fmt::format("logprobs {}: must be -1 (none) or more", p.num_logprobs));
  if (p.num_prompt_logprobs < -1) {
    return invalid(fmt::format("prompt_logprobs {}: must be -1 (none) or more", p.num_prompt_logprobs));
  }
  return {};
}

}  // namespace

Status validate(const SamplingParams& params, int vocab_size) {
  MANTA_TRY(check_numbers(params));
  MANTA_TRY(check_count("logit_bias", params.logit_bias.size(), static_cast<size_t>(vocab_size)));
  for (const auto& [id, bias] : params.logit_bias) {
    MANTA_TRY(check_ids("logit_bias", std::span(&id, 1), vocab_size));
    MANTA_TRY(check_range("logit_bias", bias, -100.0f, 100.0f));
  }
  MANTA_TRY(check_ids("allowed_token_ids", params.allowed_token_ids, vocab_size));
  size_t num_bad_tokens = 0;
  for (const auto& word : params.bad_words) num_bad_tokens += word.size();
  MANTA_TRY(check_count("bad_words", num_bad_tokens, static_cast<size_t>(vocab_size)));
  for (const auto& word : params.bad_words) {
    if (word.empty()) return invalid("bad_words holds a word without tokens: remove it");
    MANTA_TRY(check_ids("bad_words", word, vocab_size));
  }
  if (const TokenId id = params.grammar.after_token; id != -1) {
    MANTA_TRY(check_ids("grammar.after_token", std::span(&id, 1), vocab_size));
  }
  MANTA_TRY(check_ids("eos_token_ids", params.eos_token_ids, vocab_size));
  return check_ids("stop_token_ids", params.stop_token_ids, vocab_size);
}

}  // namespace manta::sample
