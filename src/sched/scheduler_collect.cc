// The scheduler's second half: what a step gave, and which requests it ended.
#include <fmt/format.h>

#include <algorithm>

#include "sched/request_state.h"
#include "sched/scheduler.h"

namespace manta::sched {
namespace {

bool contains(const std::vector<TokenId>& ids, TokenId token) {
  return std::ranges::find(ids, token) != ids.end();
}

bool ends(const sample::SamplingParams& sampling, int num_generated, TokenId token) {
  if (num_generated < sampling.min_tokens) return false;
  return (!sampling.ignore_eos && contains(sampling.eos_token_ids, token)) || contains(sampling.stop_token_ids, token);
}

}  // namespace

Result<std::vector<RequestEvent>> Scheduler::collect(StepId step_id, std::vector<SlotResult> slots,
                                                     const kv::KvProgress& kv) {
  if (in_flight_.empty() || in_flight_.front().id != step_id) {
    return error(ErrorCode::kInternal, fmt::format("step {} is not the oldest in flight", step_id));
  }
  Step step = std::move(in_flight_.front());
  in_flight_.pop_front();
  std::ranges::fill(by_slot_, nullptr);
  for (SlotResult& slot : slots) {
    if (slot.slot < 0 || slot.slot >= options_.max_num_seqs) {
      return error(ErrorCode::kInternal, fmt::format("step {}: a result of slot {}", step_id, slot.slot));
    }
    by_slot_[slot.slot] = &slot;
  }
  std::vector<RequestEvent> events = take_events();
  events.reserve(events.size() + step.requests.size());
  for (const Expected& expected : step.requests) {
    RequestState& r = *expected.request;
    --r.num_in_flight;
    r.max_new_tokens -= expected.max_new_tokens;
    if (r.phase == Phase::kFinished) continue;  // ended or aborted since; the step was for nothing
    SlotResult* result = by_slot_[expected.slot];
    MANTA_TRY(check_result(step_id, expected, result));
    if (connector_ != nullptr && r.phase == Phase::kRunning && expected.first_token >= 0) {
      connector_->on_computed(r.request.id, r.blocks, expected.first_token + expected.num_rows);
    }
    if (result == nullptr) continue;
    if (result->error.empty()) {
      events.push_back(apply(r, expected, *result));
    } else {
      fail(r, error(ErrorCode::kInternal, std::move(result->error)));
    }
  }
  if (connector_ != nullptr) apply_progress(kv);
  for (RequestEvent& event : take_events()) events.push_back(std::move(event));
  spare_ = std::move(step.requests);
  sweep();
  return events;
}

std::vector<RequestEvent> Scheduler::transferred(const kv::KvProgress& kv) {
  if (connector_ != nullptr) apply_progress(kv);
  sweep();
  return take_events();
}

void Scheduler::abandon_steps() {
  for (const Step& step : in_flight_) {
    for (const BlockId block : step.prefill_blocks) pool_.forget(block);
    for (const Expected& expected : step.requests) {
      --expected.request->num_in_flight;
      expected.request->max_new_tokens -= expected.max_new_tokens;
    }
  }
  in_flight_.clear();
  for (RequestState* r : running_) {
    if (r->phase != Phase::kRunning) continue;
    give_up_seat(*r);
    if (connector_ != nullptr) connector_->on_preempted(r->request.id);
    r->phase = Phase::kWaiting;
    waiting_.insert(r);
    ++counters_.num_preemptions;
  }
  running_.clear();
  released_.clear();
  blocked_arrival_ = 0;
  sweep();
}

Status Scheduler::check_result(StepId step, const Expected& expected, const SlotResult* result) const {
  if (result != nullptr && !result->error.empty()) return {};
  const int num_tokens = result == nullptr ? 0 : static_cast<int>(result->tokens.size());
  const int min_tokens = expected.max_new_tokens > 0 ? 1 : 0;
  if (num_tokens >= min_tokens && num_tokens <= expected.max_new_tokens) return {};
  return error(ErrorCode::kInternal, fmt::format("step {}: slot {} gave {} tokens, expected {} to {}", step,
                                                 expected.slot, num_tokens, min_tokens, expected.max_new_tokens));
}

RequestEvent Scheduler::apply(RequestState& r, const Expected& expected, SlotResult& result) {
  RequestEvent event;
  event.id = r.request.id;
  if (std::exchange(r.first_event, false)) event.num_cached_tokens = r.num_cached_tokens;
  if (!result.prompt_logprobs.empty()) {
    // A preempted prompt is computed again from the start; its entries are given once.
    const int num_known = std::clamp(r.num_prompt_logprobs_sent - expected.first_token, 0,
                                     static_cast<int>(result.prompt_logprobs.size()));
    event.prompt_logprobs.assign(std::make_move_iterator(result.prompt_logprobs.begin() + num_known),
                                 std::make_move_iterator(result.prompt_logprobs.end()));
    r.num_prompt_logprobs_sent += static_cast<int>(event.prompt_logprobs.size());
  }
  counters_.num_draft_tokens += result.num_drafted;
  if (expected.first_token < 0) counters_.num_accepted_draft_tokens += result.tokens.size() - 1;

  event.tokens = std::move(result.tokens);
  event.logprobs = std::move(result.logprobs);
  for (size_t i = 0; i < event.tokens.size(); ++i) {
    if (!append_token(r, event.tokens[i], event)) continue;
    const size_t num_tokens = event.finish == FinishReason::kError ? i : i + 1;
    event.tokens.resize(num_tokens);
    if (!event.logprobs.empty()) event.logprobs.resize(num_tokens);
  }
  const bool sampled = !event.tokens.empty();
  if (sampled && r.phase == Phase::kRunning) publish_blocks(r, r.num_tokens() - 1);  // the last token has no row yet
  if (event.finish != FinishReason::kNone) finish(r, event);
  return event;
}

// True: it was the last one.
bool Scheduler::append_token(RequestState& r, TokenId token, RequestEvent& event) {
  r.request.tokens.push_back(token);
  sample::GrammarMatcher* grammar = r.request.grammar.get();
  if (grammar != nullptr && !grammar->accept(token)) {
    event.finish = FinishReason::kError;
    event.error = error(ErrorCode::kInternal, fmt::format("token {} was sampled, but the grammar forbids it", token));
  } else if (ends(r.request.sampling, r.num_generated(), token)) {
    event.finish = FinishReason::kStop;
    event.stop_token = token;
  } else if (grammar != nullptr && grammar->is_terminated()) {  // with ignore_eos, too: nothing may follow
    event.finish = FinishReason::kStop;
    event.stop_token = token;
  } else if (r.num_tokens() >= max_num_tokens(r)) {
    event.finish = FinishReason::kLength;
  }
  return event.finish != FinishReason::kNone;
}

}  // namespace manta::sched
