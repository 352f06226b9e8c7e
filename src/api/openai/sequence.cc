#include "api/openai/sequence.h"

#include <algorithm>
#include <utility>

#include "api/openai/json_writer.h"

namespace manta::api {

using engine::FinishReason;

Sequence::Sequence(const Prepared& request, const ServedModel& model, int index, size_t prompt_idx)
    : request_(request),
      model_(model),
      index_(index),
      prompt_idx_(prompt_idx),
      detokenizer_(model.tokenizer, request.skip_special_tokens) {
  const Prompt& prompt = request.prompts[prompt_idx];
  if (prompt.is_ids) detokenizer_.prime(prompt.ids);
  if (request.stop) matcher_.emplace(request.stop, request.include_stop_str_in_output);
}

bool Sequence::take(engine::RequestOutput& output) {
  num_cached_tokens_ = std::max<int64_t>(num_cached_tokens_, output.num_cached_tokens);
  std::move(output.prompt_logprobs.begin(), output.prompt_logprobs.end(), std::back_inserter(prompt_logprobs_));
  for (size_t i = 0; i < output.tokens.size(); ++i) {
    const bool is_last = i + 1 == output.tokens.size();
    const bool is_end = is_last && output.finish == FinishReason::kStop && output.stop_token >= 0;
    if (i < output.logprobs.size()) logprobs_.push_back(std::move(output.logprobs[i]));
    // What the engine generated beyond a stop string does not count.
    if (take_token(output.tokens[i], is_end)) return output.finish == FinishReason::kNone;
  }
  if (output.finish != FinishReason::kNone) end(output);
  return false;
}

// True when a stop string is complete.
bool Sequence::take_token(TokenId token, bool is_end) {
  ++num_generated_;
  tokens_.push_back(token);
  if (is_end && !request_.include_stop_str_in_output) return false;
  if (!matcher_) {
    detokenizer_.push(token, text_);
    return false;
  }
  piece_.clear();
  detokenizer_.push(token, piece_);
  if (num_generated_ <= request_.sampling.min_tokens) {
    matcher_->pass(piece_, text_);
    return false;
  }
  const auto hit = matcher_->push(piece_, text_);
  if (!hit) return false;
  finish_ = FinishReason::kStop;
  stop_reason_.clear();
  append_json_string(stop_reason_, request_.stop->strings()[*hit]);
  return true;
}

void Sequence::end(const engine::RequestOutput& output) {
  finish_ = output.finish;
  kv_transfer_params_ = output.kv_transfer_params;
  const auto& eos = request_.sampling.eos_token_ids;
  if (output.stop_token >= 0 && std::find(eos.begin(), eos.end(), output.stop_token) == eos.end()) {
    stop_reason_.clear();
    append_json_number(stop_reason_, int64_t{output.stop_token});
  }
  if (!matcher_) return detokenizer_.finish(text_);
  piece_.clear();
  detokenizer_.finish(piece_);
  matcher_->pass(piece_, text_);
  matcher_->finish(text_);
}

void Sequence::clear_pending() {
  text_.clear();
  tokens_.clear();
  logprobs_.clear();
  prompt_logprobs_.clear();
}

}  // namespace manta::api
