// The scheduler beside a KV connector: requests whose rows come from a peer, and blocks that outlive their request.
#include <algorithm>
#include <cassert>

#include "sched/request_state.h"
#include "sched/scheduler.h"

namespace manta::sched {

// What a peer has of the request beyond `prefix`. kNow: its rows arrive within the step that uses them.
Scheduler::Match Scheduler::ask_connector(RequestState& r, const std::vector<BlockId>& prefix,
                                          int& num_external_tokens) {
  if (connector_ == nullptr || r.asked_connector) return Match::kNone;
  const int num_local_tokens = static_cast<int>(prefix.size()) * options_.block_size;
  auto answer = connector_->match(r.request.id, r.request.tokens, num_local_tokens, r.request.kv_transfer_params);
  if (!answer.ok()) {
    fail(r, answer.error());
    return Match::kElsewhere;
  }
  if (!answer->has_value()) {
    leave_queue(r);
    r.phase = Phase::kUndecided;
    undecided_.push_back(&r);
    return Match::kElsewhere;
  }
  r.asked_connector = true;
  num_external_tokens = std::min((*answer)->num_tokens, r.num_tokens() - num_local_tokens);
  if (num_external_tokens <= 0) {
    num_external_tokens = 0;
    return Match::kNone;
  }
  if (!(*answer)->asynchronous) return Match::kNow;
  start_load(r, prefix, num_external_tokens);
  return Match::kElsewhere;
}

// The request has room for all its tokens (fits), so the blocks are there.
void Scheduler::start_load(RequestState& r, std::vector<BlockId> prefix, int num_external_tokens) {
  for (BlockId block : prefix) pool_.use(block);
  r.num_published_blocks = static_cast<int>(prefix.size());
  r.num_loaded_tokens = static_cast<int>(prefix.size()) * options_.block_size + num_external_tokens;
  r.blocks = std::move(prefix);
  std::vector<BlockId> new_blocks;
  const bool grown = grow(r, r.num_loaded_tokens, new_blocks);
  assert(grown);
  static_cast<void>(grown);
  leave_queue(r);
  r.phase = Phase::kLoading;
  ++num_loading_;
  connector_->on_allocated(r.request.id, r.blocks, num_external_tokens);
}

void Scheduler::end_load(RequestState& r, int num_valid_tokens) {
  leave_queue(r);
  r.phase = Phase::kLoaded;
  r.num_loaded_tokens = std::min(r.num_loaded_tokens, num_valid_tokens);
  loaded_.insert(&r);
  publish_blocks(r, r.num_loaded_tokens);
}

// Its blocks reach as far as its load; if there is no room for the rest now, it starts anew from the queue, where it
// finds what was loaded in the prefix cache.
bool Scheduler::admit_loaded(StepPlan& plan, Step& step) {
  RequestState& r = **loaded_.begin();
  const int num_cached_tokens = std::min(r.num_loaded_tokens, r.num_tokens() - 1);
  const int rows = prefill_rows(r, num_cached_tokens);
  if (!options_.enable_chunked_prefill && rows < r.num_tokens() - num_cached_tokens) return false;
  std::vector<BlockId> new_blocks;
  if (!grow(r, num_cached_tokens + rows, new_blocks)) {
    requeue(r);
    return true;
  }
  take_seat(plan, r, num_cached_tokens, rows);
  add_prefill(plan, step, r, rows, {});
  return true;
}

// Without its blocks, from where it finds again what is left of them in the prefix cache.
void Scheduler::requeue(RequestState& r) {
  leave_queue(r);
  give_back_blocks(r);
  r.phase = Phase::kWaiting;
  waiting_.insert(&r);
}

// The last resort of a running request that lacks a block: requests that wait for a slot may hold all there are, and
// no slot gets free while those that have one stand still.
bool Scheduler::unload_last() {
  if (loaded_.empty()) return false;
  requeue(**loaded_.rbegin());
  return true;
}

void Scheduler::apply_progress(const kv::KvProgress& progress) {
  if (progress.empty()) return;
  connector_->on_progress(progress);
  const auto loading = [this](RequestId id) {
    const auto it = requests_.find(id);
    return it != requests_.end() && it->second->phase == Phase::kLoading ? it->second.get() : nullptr;
  };
  for (const RequestId id : progress.received) {
    if (RequestState* r = loading(id)) end_load(*r, r->num_loaded_tokens);
    end_hold(id);
  }
  for (const auto& failure : progress.failed) {
    RequestState* r = loading(failure.request);
    if (r != nullptr && (options_.recompute_failed_loads || failure.reason.empty())) {
      end_load(*r, failure.num_valid_tokens);
    } else if (r != nullptr) {
      fail(*r,
           error(ErrorCode::kUnavailable, "the cache rows from the prefill engine did not come: " + failure.reason));
    }
    end_hold(failure.request);
  }
  for (const RequestId id : progress.sent) end_hold(id);
}

void Scheduler::end_hold(RequestId id) {
  const auto it = held_.find(id);
  if (it == held_.end()) return;
  pool_.unhold(it->second);
  held_.erase(it);
}

}  // namespace manta::sched
