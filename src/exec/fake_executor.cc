#include "exec/fake_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>

namespace manta::exec {
namespace {

constexpr uint64_t kEmptyPrefix = 0x243f6a8885a308d3ULL;

uint64_t extend_prefix(uint64_t prefix, TokenId token) {
  uint64_t x = prefix ^ (static_cast<uint64_t>(token) + 0x9e3779b97f4a7c15ULL);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

struct Slot {
  bool taken = false;
  bool started = false;  // had a slice
  std::vector<TokenId> tokens;
  std::vector<uint64_t> prefix;  // prefix[i] = hash of tokens[0, i]
  std::vector<BlockId> blocks;
  std::vector<TokenId> drafts;
  int num_prompt_tokens = 0;
  int num_rows = 0;  // leading tokens whose rows are in the cache
  sample::SamplingParams sampling;

  void append(TokenId token) {
    prefix.push_back(extend_prefix(prefix.empty() ? kEmptyPrefix : prefix.back(), token));
    tokens.push_back(token);
  }
};

TokenId first_allowed(TokenId token, const std::vector<uint32_t>& bitmask, int vocab_size) {
  if (bitmask.empty()) return token;
  for (int i = 0; i < vocab_size; ++i) {
    const TokenId candidate = (token + i) % vocab_size;
    if (bitmask[candidate / 32] >> (candidate % 32) & 1) return candidate;
  }
  return token;
}

sample::TokenLogprobs made_up_logprobs(TokenId token, int num_best, int vocab_size) {
  sample::TokenLogprobs out;
  out.rank = 1;
  out.token_ids.push_back(token);
  out.logprobs.push_back(-0.5f);
  for (int i = 0; i < num_best; ++i) {
    out.token_ids.push_back((token + i) % vocab_size);
    out.logprobs.push_back(-0.5f * static_cast<float>(i + 1));
  }
  return out;
}

}  // namespace

struct FakeExecutor::State {
  using Clock = std::chrono::steady_clock;
  struct Pending {
    Result<StepResult> result;
    StepId id = 0;
    Clock::time_point ready_at;
    uint64_t serial = 0;
    std::vector<size_t> rows;  // of the cache that it wrote
  };

  FakeExecutorOptions options;
  ExecutorInfo info;
  std::vector<Slot> slots;
  std::vector<uint64_t> cache;  // [num_blocks * block_size]
  std::unordered_set<BlockId> loaded_blocks;

  mutable std::mutex mutex;
  std::condition_variable changed;
  std::deque<Pending> pending;
  uint64_t num_submitted = 0;
  std::vector<size_t> rows_of_step;  // written by the plan that is run
  std::optional<std::pair<StepId, Error>> failure;
  std::optional<StepId> stalled_from;
  bool draining = false;
  StageStamp stamp;
  Epoch aborted_below;         // groups whose steps fail
  Epoch group;                 // formed; 0 = none
  std::function<void()> wake;  // of the engine
  std::thread clock;           // calls it when a step gets ready
  bool clock_stops = false;

  // ---- the pretended device; engine thread only ----------------------------------------------------------------

  Error broken(StepId step, std::string what) const {
    return error(ErrorCode::kInternal, fmt::format("fake executor: step {}: {}", step, what));
  }

  uint64_t& row(const Slot& slot, int position) {
    const int block_size = info.geometry.block_size;
    return cache[static_cast<size_t>(slot.blocks[position / block_size]) * block_size + position % block_size];
  }

  Status check_slot(StepId step, SlotId id, bool taken) const {
    if (id < 0 || id >= info.max_num_seqs) return broken(step, fmt::format("slot {} of {}", id, info.max_num_seqs));
    if (slots[id].taken != taken) return broken(step, fmt::format("slot {} is {}", id, taken ? "free" : "taken"));
    return {};
  }

  Status append_blocks(StepId step, Slot& slot, const std::vector<BlockId>& blocks) {
    for (BlockId block : blocks) {
      if (block < 0 || block >= info.geometry.num_blocks) return broken(step, fmt::format("block {}", block));
      slot.blocks.push_back(block);
    }
    return {};
  }

  Status admit(StepId step, const sched::NewRequest& request) {
    MANTA_TRY(check_slot(step, request.slot, false));
    Slot& slot = slots[request.slot];
    slot = Slot{};
    slot.taken = true;
    slot.num_prompt_tokens = request.num_prompt_tokens;
    slot.sampling = request.sampling;
    for (TokenId token : request.tokens) {
      if (token < 0 || token >= info.vocab_size) return broken(step, fmt::format("token {}", token));
      slot.append(token);
    }
    MANTA_TRY(append_blocks(step, slot, request.blocks));
    slot.num_rows = request.num_computed_tokens;
    if (slot.num_rows >= static_cast<int>(slot.tokens.size())) return broken(step, "nothing left to compute");
    for (int i = 0; i < slot.num_rows; ++i) {  // what a peer sent is right
      if (loaded_blocks.contains(slot.blocks[i / info.geometry.block_size])) row(slot, i) = slot.prefix[i];
    }
    for (BlockId block : slot.blocks) loaded_blocks.erase(block);
    return {};  // its cached rows are checked when it runs: an earlier slice of this step may still write them
  }

  // Every row that the next one attends to must be of this very sequence.
  Status verify_rows(StepId step, SlotId id, int first) {
    Slot& slot = slots[id];
    for (int i = std::max(first, 0); i < slot.num_rows; ++i) {
      if (row(slot, i) != slot.prefix[i]) {
        return broken(step, fmt::format("slot {}: the cache row of position {} (block {}) is another sequence's", id, i,
                                        slot.blocks[i / info.geometry.block_size]));
      }
    }
    return {};
  }

  Status write_rows(StepId step, SlotId id, int first, int count) {
    Slot& slot = slots[id];
    if (first != slot.num_rows) {
      return broken(step, fmt::format("slot {}: rows from {} on, but {} are there", id, first, slot.num_rows));
    }
    if (first + count > static_cast<int>(slot.blocks.size()) * info.geometry.block_size) {
      return broken(step, fmt::format("slot {}: {} rows in {} blocks of {}", id, first + count, slot.blocks.size(),
                                      info.geometry.block_size));
    }
    if (first + count > info.max_model_len) return broken(step, fmt::format("slot {}: position {}", id, first + count));
    MANTA_TRY(verify_rows(step, id, options.verify_all_rows || !slot.started ? 0 : first - 1));
    slot.started = true;
    for (int i = first; i < first + count; ++i) {
      row(slot, i) = slot.prefix[i];
      rows_of_step.push_back(&row(slot, i) - cache.data());
    }
    slot.num_rows = first + count;
    return {};
  }

  TokenId next_token(const Slot& slot, uint64_t prefix, int num_tokens) const {
    if (options.next_token) return options.next_token(prefix, num_tokens);
    return options.script[(num_tokens - slot.num_prompt_tokens) % options.script.size()];
  }

  // One sampled token joins the sequence; its row is written by the next step.
  void sample(Slot& slot, const std::vector<uint32_t>& bitmask, sched::SlotResult& out) {
    const int position = static_cast<int>(slot.tokens.size());
    const TokenId token = first_allowed(next_token(slot, slot.prefix.back(), position), bitmask, info.vocab_size);
    slot.append(token);
    out.tokens.push_back(token);
    ++out.num_accepted;
    if (slot.sampling.num_logprobs >= 0) {
      out.logprobs.push_back(made_up_logprobs(token, slot.sampling.num_logprobs, info.vocab_size));
    }
  }

  void make_drafts(Slot& slot) {
    slot.drafts.clear();
    uint64_t prefix = slot.prefix.back();
    int position = static_cast<int>(slot.tokens.size());
    for (int i = 0; i < info.num_speculative_tokens; ++i, ++position) {
      TokenId token = next_token(slot, prefix, position);
      const bool right = options.draft_is_right ? options.draft_is_right(position) : position % 3 != 0;
      if (!right) token = (token + 1) % info.vocab_size;
      slot.drafts.push_back(token);
      prefix = extend_prefix(prefix, token);
    }
  }

  Status run_prefill(StepId step, const sched::PrefillSlice& slice, StepResult& out) {
    MANTA_TRY(check_slot(step, slice.slot, true));
    Slot& slot = slots[slice.slot];
    MANTA_TRY(append_blocks(step, slot, slice.new_blocks));
    const int end = slice.num_computed_tokens + slice.num_scheduled_tokens;
    const int num_tokens = static_cast<int>(slot.tokens.size());
    if (slice.num_scheduled_tokens < 1 || end > num_tokens || slice.samples != (end == num_tokens)) {
      return broken(step, fmt::format("slot {}: slice [{}, {}) of {} tokens, samples {}", slice.slot,
                                      slice.num_computed_tokens, end, num_tokens, slice.samples));
    }
    MANTA_TRY(write_rows(step, slice.slot, slice.num_computed_tokens, slice.num_scheduled_tokens));
    SlotResult result;
    result.slot = slice.slot;
    if (const int num_best = slot.sampling.num_prompt_logprobs; num_best >= 0) {
      for (int i = slice.num_computed_tokens + 1; i <= std::min(end, slot.num_prompt_tokens - 1); ++i) {
        result.prompt_logprobs.push_back(made_up_logprobs(slot.tokens[i], num_best, info.vocab_size));
      }
    }
    if (slice.samples) {
      sample(slot, slice.token_bitmask, result);
      make_drafts(slot);
    }
    if (slice.samples || !result.prompt_logprobs.empty()) out.slots.push_back(std::move(result));
    return {};
  }

  Status run_decode(StepId step, const sched::DecodeSlice& slice, StepResult& out) {
    MANTA_TRY(check_slot(step, slice.slot, true));
    Slot& slot = slots[slice.slot];
    MANTA_TRY(append_blocks(step, slot, slice.new_blocks));
    const int first = slot.num_rows;
    if (first + 1 != static_cast<int>(slot.tokens.size())) {
      return broken(step, fmt::format("slot {}: decode before its prompt is done", slice.slot));
    }
    if (slice.max_num_tokens < 1 || first + slice.max_num_tokens >= slice.max_seq_len ||
        slice.max_seq_len > info.max_model_len) {
      return broken(step, fmt::format("slot {}: {} rows after {}, bound {}", slice.slot, slice.max_num_tokens, first,
                                      slice.max_seq_len));
    }
    SlotResult result;
    result.slot = slice.slot;
    result.num_drafted = std::min<int>(slice.max_num_tokens - 1, static_cast<int>(slot.drafts.size()));
    const std::vector<TokenId> drafts = slot.drafts;
    for (int i = 0; i <= result.num_drafted; ++i) {
      MANTA_TRY(write_rows(step, slice.slot, first + i, 1));
      sample(slot, slice.token_bitmask, result);
      if (i == result.num_drafted || result.tokens.back() != drafts[i]) break;
    }
    make_drafts(slot);
    out.slots.push_back(std::move(result));
    return {};
  }

  Result<StepResult> run(const sched::StepPlan& plan) {
    StepResult out;
    out.id = plan.id;
    out.epoch = plan.epoch;
    if (plan.max_num_tokens() > info.max_num_batched_tokens) {
      return broken(plan.id, fmt::format("{} rows, bound {}", plan.max_num_tokens(), info.max_num_batched_tokens));
    }
    for (SlotId slot : plan.released) {
      MANTA_TRY(check_slot(plan.id, slot, true));
      slots[slot].taken = false;
    }
    for (const auto& load : plan.kv.loads) {
      loaded_blocks.insert(load.blocks.begin(), load.blocks.end());
      out.kv.received.push_back(load.request);
    }
    for (const auto& save : plan.kv.saves) out.kv.sent.push_back(save.request);
    for (const auto& request : plan.admitted) MANTA_TRY(admit(plan.id, request));
    for (const auto& slice : plan.decodes) MANTA_TRY(run_decode(plan.id, slice, out));
    for (const auto& slice : plan.prefills) MANTA_TRY(run_prefill(plan.id, slice, out));
    return out;
  }

  // ---- time ------------------------------------------------------------------------------------------------------

  bool stalled(const Pending& step) const { return stalled_from && step.id >= *stalled_from; }
  bool ready(const Pending& step) const {
    return group < aborted_below || (!stalled(step) && step.ready_at <= Clock::now());
  }

  void run_clock() {
    std::unique_lock lock(mutex);
    uint64_t told = 0;  // the step that was said to be ready
    while (!clock_stops) {
      if (pending.empty() || pending.front().serial == told) {
        changed.wait(lock);
      } else if (!ready(pending.front())) {
        const auto ready_at = pending.front().ready_at;
        if (stalled(pending.front())) {
          changed.wait(lock);
        } else {
          changed.wait_until(lock, ready_at);
        }
      } else {
        told = pending.front().serial;
        wake();
      }
    }
  }

  // Parks until the oldest step is ready, the deadline has come or the executor drains a stuck step.
  void wait_for_oldest(std::unique_lock<std::mutex>& lock, Deadline deadline) {
    while (!ready(pending.front()) && Clock::now() < deadline && !(draining && stalled(pending.front()))) {
      const auto wake_at = stalled(pending.front()) ? deadline : std::min(deadline, pending.front().ready_at);
      changed.wait_until(lock, Clock::time_point(wake_at));  // a copy: the deque may change while we are parked
    }
  }
};

FakeExecutor::FakeExecutor(FakeExecutorOptions options) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.options = std::move(options);
  s.info.geometry = s.options.geometry;
  s.info.max_num_seqs = s.options.max_num_seqs;
  s.info.max_num_batched_tokens = s.options.max_num_batched_tokens;
  s.info.max_model_len = s.options.max_model_len;
  s.info.vocab_size = s.options.vocab_size;
  s.info.num_speculative_tokens = s.options.num_speculative_tokens;
  s.info.max_in_flight = s.options.max_in_flight;
  s.info.device = "fake";
  if (s.options.ep_rank >= 0) s.info.ep_peer = ep::EpPeer{s.options.ep_rank, "", ""};
  s.slots.resize(s.info.max_num_seqs);
  s.cache.resize(s.info.geometry.max_num_tokens());
}

FakeExecutor::~FakeExecutor() {
  {
    std::lock_guard lock(state_->mutex);
    state_->clock_stops = true;
    state_->changed.notify_all();
  }
  if (state_->clock.joinable()) state_->clock.join();
}

const ExecutorInfo& FakeExecutor::info() const {
  return state_->info;
}

Result<Ticket> FakeExecutor::submit(sched::StepPlan plan) {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  if (s.draining) return error(ErrorCode::kFailedPrecondition, "the executor is drained");
  if (static_cast<int>(s.pending.size()) >= s.info.max_in_flight) {
    return error(ErrorCode::kFailedPrecondition, fmt::format("{} steps are in flight already", s.pending.size()));
  }
  s.stamp = {plan.id, 0, "forward", s.stamp.counter + 1};
  Result<StepResult> result =
      s.failure && s.failure->first == plan.id ? Result<StepResult>(s.failure->second) : s.run(plan);
  const auto start = s.pending.empty() ? State::Clock::now() : std::max(State::Clock::now(), s.pending.back().ready_at);
  if (result.ok()) result->timing.forward_us = s.options.step_duration.count();
  s.pending.push_back({std::move(result), plan.id, start + s.options.step_duration, ++s.num_submitted,
                       std::exchange(s.rows_of_step, {})});
  s.changed.notify_all();
  return Ticket{plan.id};
}

Result<StepResult> FakeExecutor::collect(Ticket ticket, Deadline deadline) {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  if (s.pending.empty() || s.pending.front().id != ticket.id) {
    return error(ErrorCode::kFailedPrecondition, fmt::format("step {} is not the oldest in flight", ticket.id));
  }
  s.wait_for_oldest(lock, deadline);
  if (s.draining && s.stalled(s.pending.front())) {
    return error(ErrorCode::kAborted, fmt::format("step {} was stuck when the executor drained", ticket.id));
  }
  if (!s.ready(s.pending.front())) {
    return error(ErrorCode::kDeadlineExceeded, fmt::format("step {} is not ready yet", ticket.id));
  }
  s.stamp = {ticket.id, -1, "idle", s.stamp.counter + 1};
  Result<StepResult> result = std::move(s.pending.front().result);
  s.pending.pop_front();
  s.changed.notify_all();
  if (s.group < s.aborted_below) return error(ErrorCode::kAborted, fmt::format("step {}: aborted", ticket.id));
  return result;
}

Status FakeExecutor::drain() {
  std::lock_guard lock(state_->mutex);
  state_->draining = true;
  state_->changed.notify_all();
  return {};
}

void FakeExecutor::on_ready(std::function<void()> wake) {
  std::lock_guard lock(state_->mutex);
  state_->wake = std::move(wake);
  if (!state_->clock.joinable()) state_->clock = std::thread([s = state_.get()] { s->run_clock(); });
}

Status FakeExecutor::form_group(const ep::EpTopology& topology) {
  State& s = *state_;
  std::lock_guard lock(s.mutex);
  if (!s.pending.empty()) return error(ErrorCode::kFailedPrecondition, "steps are in flight");
  if (topology.epoch < s.aborted_below) return error(ErrorCode::kAborted, "there is a newer group");
  s.group = topology.epoch;
  for (Slot& slot : s.slots) slot.taken = false;
  return {};
}

void FakeExecutor::abort(Epoch epoch) {
  std::lock_guard lock(state_->mutex);
  state_->aborted_below = std::max(state_->aborted_below, epoch);
  // A step that does not end writes some of its rows, or none: who reads one of them later must be found out.
  if (state_->group < state_->aborted_below) {
    for (const auto& step : state_->pending) {
      for (const size_t row : step.rows) state_->cache[row] = 0;
    }
  }
  state_->changed.notify_all();
}

StageStamp FakeExecutor::where() const {
  std::lock_guard lock(state_->mutex);
  return state_->stamp;
}

void FakeExecutor::fail_at(StepId step, Error error) {
  std::lock_guard lock(state_->mutex);
  state_->failure = {step, std::move(error)};
}

void FakeExecutor::stall_at(StepId step) {
  std::lock_guard lock(state_->mutex);
  state_->stalled_from = step;
}

void FakeExecutor::unstall() {
  std::lock_guard lock(state_->mutex);
  state_->stalled_from.reset();
  state_->changed.notify_all();
}

}  // namespace manta::exec
