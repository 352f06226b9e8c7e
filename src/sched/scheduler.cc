#include "sched/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>

#include "sched/request_state.h"

namespace manta::sched {
namespace {

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

Status check_options(const SchedulerOptions& o) {
  if (o.num_blocks < 1 || o.block_size < 1 || o.max_num_seqs < 1 || o.max_model_len < 2) {
    return invalid(fmt::format("num_blocks {}, block_size {}, max_num_seqs {}, max_model_len {}: too small",
                               o.num_blocks, o.block_size, o.max_num_seqs, o.max_model_len));
  }
  if (o.max_num_batched_tokens < o.max_num_seqs) {
    return invalid(fmt::format("max_num_batched_tokens {}: must be at least max_num_seqs {}, a token for each request",
                               o.max_num_batched_tokens, o.max_num_seqs));
  }
  if (!o.enable_chunked_prefill && o.max_num_batched_tokens < o.max_model_len) {
    return invalid(fmt::format("max_num_batched_tokens {}: must be at least max_model_len {} without chunked prefill",
                               o.max_num_batched_tokens, o.max_model_len));
  }
  if (o.vocab_size < 0 || o.num_speculative_tokens < 0 || o.long_prefill_token_threshold < 0 || o.watermark < 0.0 ||
      o.watermark >= 1.0) {
    return invalid(fmt::format(
        "vocab_size {}, num_speculative_tokens {}, long_prefill_token_threshold {}, watermark {}: out of range",
        o.vocab_size, o.num_speculative_tokens, o.long_prefill_token_threshold, o.watermark));
  }
  return {};
}

}  // namespace

bool Scheduler::Sooner::operator()(const RequestState* a, const RequestState* b) const {
  return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

Result<std::unique_ptr<Scheduler>> Scheduler::make(const SchedulerOptions& options,
                                                   kv::KvConnectorScheduler* connector) {
  MANTA_TRY(check_options(options));
  return std::unique_ptr<Scheduler>(new Scheduler(options, connector));
}

Scheduler::Scheduler(const SchedulerOptions& options, kv::KvConnectorScheduler* connector)
    : options_(options), connector_(connector), pool_(options.num_blocks), by_slot_(options.max_num_seqs) {
  for (SlotId slot = options.max_num_seqs; slot-- > 0;) free_slots_.push_back(slot);
}

Scheduler::~Scheduler() = default;

int Scheduler::max_num_tokens(const RequestState& r) const {
  const int64_t asked = int64_t{r.request.num_prompt_tokens} + r.request.sampling.max_tokens;
  return static_cast<int>(std::min<int64_t>(asked, options_.max_model_len));
}

// ---- requests come and go ------------------------------------------------------------------------------------------

Status Scheduler::check(const Request& request) const {
  const int num_tokens = static_cast<int>(request.tokens.size());
  const int num_generated = num_tokens - request.num_prompt_tokens;
  if (requests_.contains(request.id)) return invalid(fmt::format("request {} is here already", to_string(request.id)));
  if (request.num_prompt_tokens < 1 || num_generated < 0) {
    return invalid(fmt::format("{} prompt tokens of {} tokens: a prompt has at least one token",
                               request.num_prompt_tokens, num_tokens));
  }
  if (num_tokens >= options_.max_model_len) {
    return invalid(fmt::format("{} tokens leave no room to generate: max_model_len is {}; shorten the prompt",
                               num_tokens, options_.max_model_len));
  }
  if (request.sampling.max_tokens <= num_generated) {
    return invalid(
        fmt::format("max_tokens {}: {} tokens are generated already", request.sampling.max_tokens, num_generated));
  }
  const int64_t most =
      std::min<int64_t>(int64_t{request.num_prompt_tokens} + request.sampling.max_tokens, options_.max_model_len);
  const int64_t num_needed = blocks_for(static_cast<int>(most) - 1);  // the last token needs no row
  if (num_needed > options_.num_blocks) {
    return invalid(fmt::format(
        "{} prompt tokens and max_tokens {} need {} cache blocks of {} tokens, the whole cache has {}: lower "
        "max_tokens or give the cache more memory",
        request.num_prompt_tokens, request.sampling.max_tokens, num_needed, options_.block_size, options_.num_blocks));
  }
  return {};
}

// Brings the matcher to where an earlier engine left the text.
Status Scheduler::check_grammar(Request& request) const {
  if (request.grammar == nullptr) return {};
  if (options_.vocab_size == 0) return invalid("a grammar was given, but this engine was started without grammars");
  for (size_t i = request.num_prompt_tokens; i < request.tokens.size(); ++i) {
    if (request.grammar->accept(request.tokens[i])) continue;
    return invalid(fmt::format("generated token {} (id {}) breaks the request's grammar", i - request.num_prompt_tokens,
                               request.tokens[i]));
  }
  return {};
}

Status Scheduler::add(Request request) {
  MANTA_TRY(check(request));
  MANTA_TRY(check_grammar(request));
  auto state = std::make_unique<RequestState>();
  state->arrival = next_arrival_++;
  state->priority = options_.policy == Policy::kPriority ? request.priority : 0;
  state->root = hasher_.root(request.cache_salt);
  state->request = std::move(request);
  waiting_.insert(state.get());
  const RequestId id = state->request.id;
  if (connector_ != nullptr) connector_->on_added(id, state->request.kv_transfer_params);
  requests_.emplace(id, std::move(state));
  return {};
}

bool Scheduler::abort(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return false;
  RequestState& r = *it->second;
  if (connector_ != nullptr) connector_->on_aborted(id);
  if (r.phase == Phase::kLoading) {  // the peer's rows may still arrive
    pool_.hold(r.blocks);
    held_.emplace(id, r.blocks);
  }
  drop(r);
  return true;
}

// Slot and blocks go back; what the steps in flight still write is overwritten by whoever gets them next.
void Scheduler::give_up_seat(RequestState& r) {
  released_.push_back(r.slot);
  free_slots_.push_back(r.slot);
  r.slot = -1;
  --num_running_;
  give_back_blocks(r);
}

void Scheduler::give_back_blocks(RequestState& r) {
  pool_.release(r.blocks);
  r.blocks.clear();
  r.num_loaded_tokens = 0;
}

void Scheduler::leave_queue(RequestState& r) {
  switch (r.phase) {
    case Phase::kWaiting: waiting_.erase(&r); break;
    case Phase::kUndecided: std::erase(undecided_, &r); break;
    case Phase::kLoading: --num_loading_; break;
    case Phase::kLoaded: loaded_.erase(&r); break;
    case Phase::kRunning:
    case Phase::kFinished: break;
  }
}

void Scheduler::finish(RequestState& r, RequestEvent& event) {
  if (connector_ != nullptr) {
    const RequestId id = r.request.id;
    kv::HandOff hand_off = connector_->on_finished(id, r.blocks, r.num_tokens() - 1);
    event.kv_transfer_params = std::move(hand_off.kv_transfer_params);
    if (hand_off.held && !r.blocks.empty()) {
      pool_.hold(r.blocks);
      held_.emplace(id, r.blocks);
    }
  }
  drop(r);
}

void Scheduler::fail(RequestState& r, Error error) {
  RequestEvent event;
  event.id = r.request.id;
  event.finish = FinishReason::kError;
  event.error = std::move(error);
  events_.push_back(std::move(event));
  if (connector_ != nullptr) connector_->on_aborted(r.request.id);
  drop(r);
}

void Scheduler::drop(RequestState& r) {
  leave_queue(r);
  if (r.phase == Phase::kRunning) {
    give_up_seat(r);
  } else {
    give_back_blocks(r);
  }
  r.phase = Phase::kFinished;
  const auto it = requests_.find(r.request.id);
  finished_.push_back(std::move(it->second));
  requests_.erase(it);
}

void Scheduler::sweep() {
  if (finished_.empty()) return;
  std::erase_if(running_, [](const RequestState* r) { return r->phase != Phase::kRunning; });
  std::erase_if(finished_, [](const auto& r) { return r->num_in_flight == 0; });
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats out = counters_;
  out.num_waiting = static_cast<int>(waiting_.size() + loaded_.size() + undecided_.size()) + num_loading_;
  out.num_running = num_running_;
  out.num_loading = num_loading_;
  out.num_blocks = pool_.num_blocks();
  out.num_available_blocks = pool_.num_available();
  out.kv_cache_usage = pool_.usage();
  return out;
}

// ---- prefix cache --------------------------------------------------------------------------------------------------

void Scheduler::hash_blocks(RequestState& r) {
  const size_t block_size = options_.block_size;
  const std::span<const TokenId> tokens = r.request.tokens;
  while ((r.hashes.size() + 1) * block_size <= tokens.size()) {
    const kv::BlockHash& parent = r.hashes.empty() ? r.root : r.hashes.back();
    r.hashes.push_back(hasher_.next(parent, tokens.subspan(r.hashes.size() * block_size, block_size)));
  }
}

void Scheduler::publish_blocks(RequestState& r, int num_rows) {
  const int num_full = num_rows / options_.block_size;
  if (!options_.enable_prefix_caching || r.num_published_blocks >= num_full) return;
  hash_blocks(r);
  for (int& i = r.num_published_blocks; i < num_full; ++i) pool_.publish(r.blocks[i], r.hashes[i]);
}

// The longest run of cached blocks the sequence begins with. At least its last token is computed again, because
// nothing else gives its logits; prompt logprobs need every row.
std::vector<BlockId> Scheduler::find_prefix(RequestState& r) {
  std::vector<BlockId> blocks;
  if (!options_.enable_prefix_caching || r.wants_prompt_logprobs()) return blocks;
  hash_blocks(r);
  const size_t num_usable = (r.num_tokens() - 1) / options_.block_size;
  while (blocks.size() < num_usable) {
    const BlockId block = pool_.find(r.hashes[blocks.size()]);
    if (block < 0) break;
    blocks.push_back(block);
  }
  return blocks;
}

// ---- plan ----------------------------------------------------------------------------------------------------------

StepPlan Scheduler::start_plan(const DpAgreement& dp) {
  sweep();
  StepPlan plan;
  plan.id = next_step_;
  plan.epoch = dp.epoch;
  plan.dp = dp;
  plan.dp.dummy = false;
  budget_ = options_.max_num_batched_tokens;
  short_of_blocks_ = false;
  return plan;
}

void Scheduler::finish_plan(StepPlan& plan, Step step) {
  plan.released = std::exchange(released_, {});
  step.id = plan.id;
  in_flight_.push_back(std::move(step));
  ++next_step_;
}

std::optional<StepPlan> Scheduler::plan(const DpAgreement& dp) {
  StepPlan plan = start_plan(dp);
  Step step;
  step.requests = std::move(spare_);
  step.requests.clear();
  plan_decodes(plan, step);
  plan_prefills(plan, step);
  plan_admissions(plan, step);
  if (connector_ != nullptr) plan.kv = connector_->build_actions();
  if (plan.empty()) {
    if (!dp.dummy) {
      spare_ = std::move(step.requests);
      return std::nullopt;
    }
    plan.dp.dummy = true;
  }
  finish_plan(plan, std::move(step));
  return plan;
}

StepPlan Scheduler::plan_transfers(const DpAgreement& dp) {
  StepPlan plan = start_plan(dp);
  plan.dp.dummy = dp.dummy;
  if (connector_ != nullptr) plan.kv = connector_->build_actions();
  finish_plan(plan, {});
  return plan;
}

void Scheduler::plan_decodes(StepPlan& plan, Step& step) {
  plan.decodes.reserve(running_.size());
  int num_passed_over = 0;  // running, and still to get their token from the budget
  for (size_t i = 0; i < running_.size(); ++i) {
    RequestState& r = *running_[i];
    if (r.prefilling()) {
      ++num_passed_over;
      continue;
    }
    // Drafts are verified with what is left once every running request has one token.
    const int num_others = static_cast<int>(running_.size() - i) - 1 + num_passed_over;
    const int rows = decode_rows(r, budget_ - num_others);
    if (rows == 0) continue;
    const int num_rows_before = r.num_tokens() + r.max_new_tokens - 1;
    std::vector<BlockId> new_blocks;
    if (grow(r, num_rows_before + rows, new_blocks)) {
      add_decode(plan, step, r, rows, std::move(new_blocks));
    } else if (grow_or_preempt(r, i, num_rows_before + 1, new_blocks)) {
      add_decode(plan, step, r, 1, std::move(new_blocks));
    }
  }
}

// How many tokens a request may verify now; 0 when it may have all its tokens once the steps in flight are collected.
int Scheduler::decode_rows(const RequestState& r, int budget) const {
  const int num_left = max_num_tokens(r) - (r.num_tokens() + r.max_new_tokens);
  if (num_left <= 0) return 0;
  if (r.request.grammar != nullptr) return r.max_new_tokens == 0 ? 1 : 0;  // the mask needs the last token
  return 1 + std::clamp(std::min(num_left, budget) - 1, 0, options_.num_speculative_tokens);
}

void Scheduler::plan_prefills(StepPlan& plan, Step& step) {
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    RequestState& r = *running_[i];
    if (!r.prefilling()) continue;
    const int rows = prefill_rows(r, r.num_planned_tokens);
    std::vector<BlockId> new_blocks;
    if (!grow_or_preempt(r, i, r.num_planned_tokens + rows, new_blocks)) continue;
    add_prefill(plan, step, r, rows, std::move(new_blocks));
  }
}

int Scheduler::prefill_rows(const RequestState& r, int num_computed_tokens) const {
  const int threshold = options_.long_prefill_token_threshold;
  const int rows = std::min(r.num_tokens() - num_computed_tokens, budget_);
  return threshold > 0 && options_.enable_chunked_prefill ? std::min(rows, threshold) : rows;
}

void Scheduler::plan_admissions(StepPlan& plan, Step& step) {
  for (RequestState* r : std::exchange(undecided_, {})) {
    r->phase = Phase::kWaiting;
    waiting_.insert(r);
  }
  // Whoever had to give up blocks in this very plan would come straight back and take them from the others.
  const auto has_room = [this] { return !short_of_blocks_ && budget_ > 0 && !free_slots_.empty(); };
  // Those that hold blocks already go first: kept waiting behind one that lacks blocks, they could block each other.
  while (has_room() && !loaded_.empty() && admit_loaded(plan, step)) continue;
  while (has_room() && !waiting_.empty() && admit_next(plan, step)) continue;
}

// Strictly in order: a request that does not fit yet keeps those behind it from taking what it waits for.
bool Scheduler::admit_next(StepPlan& plan, Step& step) {
  RequestState& r = **waiting_.begin();
  if (r.num_in_flight > 0) return false;  // preempted a moment ago; its last tokens are still to be collected
  const bool unchanged = r.arrival == blocked_arrival_ && pool_.num_available() <= blocked_at_available_;
  if (num_running_ > 0 && unchanged) return false;

  std::vector<BlockId> prefix = find_prefix(r);
  if (!fits(r, prefix)) {
    blocked_arrival_ = r.arrival;
    blocked_at_available_ = pool_.num_available();
    return false;
  }
  int num_external_tokens = 0;
  if (ask_connector(r, prefix, num_external_tokens) == Match::kElsewhere) return true;
  const int num_local_tokens = static_cast<int>(prefix.size()) * options_.block_size;
  const int num_cached_tokens = std::min(num_local_tokens + num_external_tokens, r.num_tokens() - 1);
  const int rows = prefill_rows(r, num_cached_tokens);
  if (!options_.enable_chunked_prefill && rows < r.num_tokens() - num_cached_tokens) return false;

  for (BlockId block : prefix) pool_.use(block);
  r.num_published_blocks = static_cast<int>(prefix.size());
  r.blocks = std::move(prefix);
  take_seat(plan, r, num_cached_tokens, rows);
  if (num_external_tokens > 0) connector_->on_allocated(r.request.id, r.blocks, num_external_tokens);
  add_prefill(plan, step, r, rows, {});
  return true;
}

// All its tokens must find room, also when this step computes only the first of them.
bool Scheduler::fits(const RequestState& r, const std::vector<BlockId>& prefix) {
  const auto num_revived = std::ranges::count_if(prefix, [this](BlockId block) { return pool_.is_unused(block); });
  const int num_needed = blocks_for(r.num_tokens()) - static_cast<int>(prefix.size()) + static_cast<int>(num_revived);
  const int num_spared = num_running_ == 0 ? 0 : static_cast<int>(options_.watermark * options_.num_blocks);
  return pool_.num_available() >= num_needed + num_spared;
}

void Scheduler::take_seat(StepPlan& plan, RequestState& r, int num_cached_tokens, int rows) {
  std::vector<BlockId> new_blocks;
  const bool grown = grow(r, num_cached_tokens + rows, new_blocks);
  assert(grown);
  static_cast<void>(grown);
  leave_queue(r);
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &r, Sooner{}), &r);
  ++num_running_;
  r.phase = Phase::kRunning;
  r.slot = free_slots_.back();
  free_slots_.pop_back();
  r.num_admitted_tokens = r.num_tokens();
  r.num_planned_tokens = num_cached_tokens;
  if (!r.ran_before) {
    r.ran_before = true;
    r.num_cached_tokens = num_cached_tokens;
    counters_.prefix_cache_queries += options_.enable_prefix_caching ? r.num_tokens() : 0;
    counters_.prefix_cache_hits += num_cached_tokens;
  }
  plan.admitted.push_back({r.slot, r.request.id, r.request.tokens, r.request.num_prompt_tokens, num_cached_tokens,
                           r.blocks, r.request.sampling});
  if (!r.wants_prompt_logprobs()) plan.admitted.back().sampling.num_prompt_logprobs = -1;  // sent before a preemption
}

void Scheduler::add_decode(StepPlan& plan, Step& step, RequestState& r, int rows, std::vector<BlockId> new_blocks) {
  const int max_seq_len = r.num_tokens() + r.max_new_tokens + rows;
  plan.decodes.push_back({r.slot, rows, max_seq_len, std::move(new_blocks), next_bitmask(r)});
  step.requests.push_back({&r, r.slot, -1, rows, rows});
  r.planned_in = plan.id;
  budget_ -= rows;
  ++r.num_in_flight;
  r.max_new_tokens += rows;
}

void Scheduler::add_prefill(StepPlan& plan, Step& step, RequestState& r, int rows, std::vector<BlockId> new_blocks) {
  const int first = r.num_planned_tokens;
  r.num_planned_tokens += rows;
  const bool samples = !r.prefilling();
  std::vector<uint32_t> bitmask = samples ? next_bitmask(r) : std::vector<uint32_t>{};
  plan.prefills.push_back({r.slot, first, rows, samples, std::move(new_blocks), std::move(bitmask)});
  step.requests.push_back({&r, r.slot, first, rows, samples ? 1 : 0});
  const auto first_block = r.blocks.begin() + first / options_.block_size;
  step.prefill_blocks.insert(step.prefill_blocks.end(), first_block, r.blocks.begin() + blocks_for(first + rows));
  r.planned_in = plan.id;
  budget_ -= rows;
  ++r.num_in_flight;
  r.max_new_tokens += samples ? 1 : 0;
  publish_blocks(r, r.num_planned_tokens);
}

std::vector<uint32_t> Scheduler::next_bitmask(RequestState& r) {
  std::vector<uint32_t> words;
  if (r.request.grammar == nullptr) return words;
  words.resize((options_.vocab_size + 31) / 32);
  if (!r.request.grammar->fill_bitmask(words)) words.clear();
  return words;
}

bool Scheduler::grow(RequestState& r, int num_rows, std::vector<BlockId>& new_blocks) {
  const int num_needed = blocks_for(num_rows) - static_cast<int>(r.blocks.size());
  if (num_needed <= 0) return true;
  if (!pool_.allocate(num_needed, new_blocks)) return false;
  r.blocks.insert(r.blocks.end(), new_blocks.begin(), new_blocks.end());
  return true;
}

// False: the request sits this step out and keeps what it has. It is the last in the order, or everybody behind it is
// in the plan already and will move on; so some request always does.
bool Scheduler::grow_or_preempt(RequestState& r, size_t index, int num_rows, std::vector<BlockId>& new_blocks) {
  while (!grow(r, num_rows, new_blocks)) {
    short_of_blocks_ = true;
    if (!preempt_after(index) && !unload_last()) return false;
  }
  return true;
}

bool Scheduler::preempt_after(size_t index) {
  for (size_t i = running_.size(); i-- > index + 1;) {
    RequestState& r = *running_[i];
    if (r.planned_in == next_step_) continue;
    running_.erase(running_.begin() + static_cast<ptrdiff_t>(i));
    give_up_seat(r);
    if (connector_ != nullptr) connector_->on_preempted(r.request.id);
    r.phase = Phase::kWaiting;
    waiting_.insert(&r);
    ++counters_.num_preemptions;
    return true;
  }
  return false;
}

}  // namespace manta::sched
