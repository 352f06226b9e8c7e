// One answer while it is generated: what came from the engine, as text, as far as it is not written yet.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "api/openai/prepare.h"
#include "engine/messages.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"

namespace manta::api {

class Sequence {
 public:
  Sequence(const Prepared& request, const ServedModel& model, int index, size_t prompt_idx);

  int index() const { return index_; }  // of the choice
  size_t prompt_idx() const { return prompt_idx_; }

  // Adds what a step gave. True when a stop string ended the sequence, so that the engine must be told.
  bool take(engine::RequestOutput& output);

  bool finished() const { return finish_ != engine::FinishReason::kNone; }
  engine::FinishReason finish() const { return finish_; }
  // As JSON: null, the stop string, or the stop token's id.
  const std::string& stop_reason() const { return stop_reason_; }
  int64_t num_generated() const { return num_generated_; }
  int64_t num_cached_tokens() const { return num_cached_tokens_; }
  const std::string& kv_transfer_params() const { return kv_transfer_params_; }

  // Not written yet. Whoever writes them calls clear_pending().
  const std::string& text() const { return text_; }
  const std::vector<TokenId>& tokens() const { return tokens_; }
  const std::vector<sample::TokenLogprobs>& logprobs() const { return logprobs_; }
  const std::vector<sample::TokenLogprobs>& prompt_logprobs() const { return prompt_logprobs_; }
  void clear_pending();

  // For whoever drives and writes it.
  RequestId id;
  bool submitted = false;
  bool begun = false;      // something was written
  size_t text_offset = 0;  // characters written in completion logprobs so far
  int rank = 0;            // of the engine that works on it, or did last
  int64_t prefill_us = 0;  // from its engine's first step for it to the first tokens
  std::chrono::steady_clock::time_point first_output{}, last_output{};

 private:
  bool take_token(TokenId token, bool is_end);
  void end(const engine::RequestOutput& output);

  const Prepared& request_;
  const ServedModel& model_;
  int index_;
  size_t prompt_idx_;
  text::Detokenizer detokenizer_;
  std::optional<text::StopMatcher> matcher_;
  std::string piece_;  // of one token; kept for its memory

  std::string text_;
  std::vector<TokenId> tokens_;
  std::vector<sample::TokenLogprobs> logprobs_, prompt_logprobs_;

  engine::FinishReason finish_ = engine::FinishReason::kNone;
  std::string stop_reason_ = "null";
  int64_t num_generated_ = 0;
  int64_t num_cached_tokens_ = 0;
  std::string kv_transfer_params_;
};

}  // namespace manta::api
