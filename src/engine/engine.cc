#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "base/log.h"

namespace manta::engine {
namespace {

void add_timing(Load& load, const exec::StepTiming& t) {
  ++load.num_steps;
  load.schedule_us += static_cast<uint64_t>(t.schedule_us);
  load.forward_us += static_cast<uint64_t>(t.forward_us);
  load.dispatch_us += static_cast<uint64_t>(t.dispatch_us);
  load.combine_us += static_cast<uint64_t>(t.combine_us);
  load.sample_us += static_cast<uint64_t>(t.sample_us);
}

void count_step(StepTimes& times, const exec::StepTiming& t) {
  const double seconds = static_cast<double>(t.forward_us + t.dispatch_us + t.combine_us + t.sample_us) * 1e-6;
  ++times[std::lower_bound(kStepTimeBounds.begin(), kStepTimeBounds.end(), seconds) - kStepTimeBounds.begin()];
}

}  // namespace

Engine::Engine(EngineOptions options, std::unique_ptr<sched::Scheduler> scheduler,
               std::unique_ptr<exec::Executor> executor, MakeGrammarCompiler grammars, Deliver deliver)
    : options_(options),
      scheduler_(std::move(scheduler)),
      executor_(std::move(executor)),
      deliver_(std::move(deliver)),
      grammars_(std::move(grammars), [this](Submit&& submit, GrammarResult&& matcher) {
        post(GrammarCommand{std::move(submit), std::move(matcher)});
      }) {
  publish_snapshot();
  if (!options_.watch_transfers) return;
  options_.watch_transfers([this] {
    {
      const std::lock_guard lock(mutex_);
      transfers_got_on_ = true;
    }
    wake_.notify_one();
  });
}

Engine::~Engine() {
  if (options_.watch_transfers) options_.watch_transfers({});
}

Status Engine::run() {
  if (in_group()) return run_in_group();
  begin_serving();
  bool nothing_to_plan = true;
  while (true) {
    const bool park = in_flight_.empty() && nothing_to_plan;
    if (park) announce_idle();
    for (Command& command : take_commands(park)) {
      std::visit([this](auto& c) { apply(std::move(c)); }, command);
    }
    flush(0);  // refusals, which belong to no step
    if (leaving()) break;
    MANTA_TRY(submit_plans());
    nothing_to_plan = in_flight_.empty();
    if (nothing_to_plan) flush(0);  // planning may have refused the only request there was
    if (!nothing_to_plan) MANTA_TRY(collect_one());
  }
  while (!in_flight_.empty()) MANTA_TRY(collect_one());
  return executor_->drain();
}

bool Engine::leaving() {
  const std::lock_guard lock(mutex_);
  return stopping_ || (mailbox_.empty() && drained());
}

// Under mutex_. Until then a draining engine parks like any other, for rows on their way or a lease that is held.
bool Engine::drained() const {
  return draining_ && compiling_.empty() && !scheduler_->has_requests() && !scheduler_->awaits_peers();
}

Status Engine::submit_plans() {
  const auto begin = std::chrono::steady_clock::now();
  while (static_cast<int>(in_flight_.size()) < options_.max_num_plans) {
    std::optional<sched::StepPlan> plan = scheduler_->plan(sched::DpAgreement{});
    for (sched::RequestEvent& event : scheduler_->take_events()) emit(std::move(event));
    if (!plan) break;
    note_first_step(*plan);
    MANTA_TRY(submit(std::move(*plan)));
  }
  if (in_flight_.empty() && take_transfer_news() && scheduler_->awaits_peers()) {
    MANTA_TRY(submit(scheduler_->plan_transfers(sched::DpAgreement{})));
    idle_announced_ = false;  // what the transfers changed is news to the front-ends
  }
  const auto spent = std::chrono::steady_clock::now() - begin;
  load_.schedule_us += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(spent).count());
  return {};
}

Status Engine::submit(sched::StepPlan plan) {
  static_cast<void>(take_transfer_news());  // this step brings them
  MANTA_ASSIGN(const exec::Ticket ticket, executor_->submit(std::move(plan)));
  in_flight_.push_back({ticket, voter_.step()});
  return {};
}

bool Engine::take_transfer_news() {
  const std::lock_guard lock(mutex_);
  return std::exchange(transfers_got_on_, false);
}

Status Engine::collect_one() {
  publish_snapshot();  // busy from here on: a stage counter that stands still is a fault
  const exec::Ticket ticket = in_flight_.front().ticket;
  auto result = executor_->collect(ticket, std::chrono::steady_clock::now() + options_.step_deadline);
  if (!result.ok()) {
    const exec::StageStamp at = executor_->where();
    return error(result.error().code, fmt::format("rank {}: step {} failed at layer {}, stage {}: {}", options_.rank,
                                                  ticket.id, at.layer, at.stage, result.error().message));
  }
  in_flight_.pop_front();
  add_result(*result);
  MANTA_ASSIGN(auto events, scheduler_->collect(result->id, std::move(result->slots), result->kv));
  for (sched::RequestEvent& event : events) emit(std::move(event));
  flush(result->id);
  publish_snapshot();
  return {};
}

void Engine::add_result(const exec::StepResult& result) {
  add_timing(load_, result.timing);
  count_step(step_times_, result.timing);
  note_transfers(result.kv.counters);
  load_.ep_dispatch_rows += result.traffic.rows;
  load_.ep_dispatch_bytes += result.traffic.bytes;
  note_experts(result.eplb);
}

void Engine::note_transfers(const kv::TransferCounters& c) {
  load_.kv_bytes_received = c.bytes_received;
  load_.kv_bytes_sent = c.bytes_sent;
  load_.num_kv_failed = c.num_failed;
  load_.num_kv_expired = c.num_expired;
  load_.num_kv_refused = c.num_refused_stale;
  load_.num_kv_leases = c.num_leases;
}

void Engine::note_experts(const exec::EplbCounts& counts) {
  load_.num_eplb_rearrangements = counts.num_rearrangements;
  if (counts.window == experts_seen_) return;
  experts_seen_ = counts.window;
  ExpertReport report;
  report.num_layers = static_cast<int32_t>(counts.window->balancedness.size());
  report.num_experts = counts.window->num_experts;
  report.balancedness = counts.window->balancedness;
  report.tokens = counts.window->tokens;
  experts_ = std::make_shared<const ExpertReport>(std::move(report));
}

void Engine::begin_serving() {
  if (std::exchange(serving_, true)) return;
  publish_snapshot();
  if (options_.on_serving) options_.on_serving();
}

// ---- mailbox ----

void Engine::post(Command command) {
  {
    const std::lock_guard lock(mutex_);
    mailbox_.push_back(std::move(command));
  }
  wake_.notify_one();
}

std::deque<Engine::Command> Engine::take_commands(bool wait) {
  std::unique_lock lock(mutex_);
  if (wait) wake_.wait(lock, [this] { return !mailbox_.empty() || transfers_got_on_ || stopping_ || drained(); });
  return std::exchange(mailbox_, {});
}

void Engine::submit(Submit submit) {
  post(std::move(submit));
}
void Engine::abort(std::vector<RequestId> ids) {
  post(AbortCommand{std::move(ids)});
}
void Engine::client_gone(uint64_t client) {
  post(ClientGoneCommand{client});
}

void Engine::drain() {
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
  }
  wake_.notify_one();
}

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
}

Snapshot Engine::snapshot() const {
  Snapshot s;
  {
    const std::lock_guard lock(mutex_);
    s = snapshot_;
  }
  s.where = executor_->where();
  return s;
}

// ---- requests ----

void Engine::apply(Submit&& submit) {
  const RequestId id = submit.id;
  {
    const std::lock_guard lock(mutex_);
    if (draining_) {
      return emit_error(id, error(ErrorCode::kUnavailable, "this engine is draining; send the request again"));
    }
  }
  unfinished_[id.client].insert(id.serial);
  beginnings_[id].taken = std::chrono::steady_clock::now();
  if (submit.sampling.grammar.kind == sample::GrammarKind::kNone) return add(std::move(submit), nullptr);
  compiling_.insert(id);
  grammars_.compile(std::move(submit));
}

void Engine::apply(GrammarCommand&& command) {
  const RequestId id = command.submit.id;
  if (compiling_.erase(id) == 0) return;  // aborted meanwhile
  if (!command.matcher.ok()) return emit_error(id, command.matcher.error());
  add(std::move(command.submit), std::move(*command.matcher));
}

void Engine::add(Submit&& submit, std::shared_ptr<sample::GrammarMatcher> grammar) {
  const RequestId id = submit.id;
  sched::Request request;
  request.id = id;
  request.tokens = std::move(submit.tokens);
  request.num_prompt_tokens = submit.num_prompt_tokens;
  request.sampling = std::move(submit.sampling);
  request.priority = submit.priority;
  request.cache_salt = std::move(submit.cache_salt);
  request.grammar = std::move(grammar);
  request.kv_transfer_params = std::move(submit.kv_transfer_params);
  const auto num_prompt_tokens = static_cast<uint64_t>(request.num_prompt_tokens);
  const Status added = scheduler_->add(std::move(request));
  if (!added.ok()) return emit_error(id, added.error());
  load_.num_prompt_tokens += num_prompt_tokens;
}

void Engine::apply(AbortCommand&& command) {
  for (const RequestId id : command.ids) {
    if (compiling_.erase(id) > 0) grammars_.forget(id);
    scheduler_->abort(id);
    forget(id);
  }
}

void Engine::apply(ClientGoneCommand&& command) {
  const auto it = unfinished_.find(command.client);
  if (it == unfinished_.end()) return;
  for (const uint64_t serial : it->second) {
    const RequestId id{command.client, serial};
    if (compiling_.erase(id) > 0) grammars_.forget(id);
    beginnings_.erase(id);
    scheduler_->abort(id);
  }
  unfinished_.erase(it);
  outbox_.erase(command.client);
}

void Engine::forget(RequestId id) {
  beginnings_.erase(id);
  const auto it = unfinished_.find(id.client);
  if (it != unfinished_.end()) it->second.erase(id.serial);
}

// ---- outputs ----

void Engine::emit(sched::RequestEvent&& event) {
  RequestOutput out;
  out.id = event.id;
  out.tokens = std::move(event.tokens);
  load_.num_generation_tokens += out.tokens.size();
  out.logprobs = std::move(event.logprobs);
  out.prompt_logprobs = std::move(event.prompt_logprobs);
  out.finish = event.finish;
  out.stop_token = event.stop_token;
  out.num_cached_tokens = event.num_cached_tokens;
  out.error_code = event.error.code;
  out.error_message = std::move(event.error.message);
  out.kv_transfer_params = std::move(event.kv_transfer_params);
  if (!out.tokens.empty()) add_first_token_times(out);
  if (out.finish != FinishReason::kNone) forget(out.id);
  outbox_[out.id.client].push_back(std::move(out));
}

void Engine::note_first_step(const sched::StepPlan& plan) {
  for (const auto& request : plan.admitted) {
    const auto it = beginnings_.find(request.id);
    if (it != beginnings_.end() && !it->second.first_step) it->second.first_step = std::chrono::steady_clock::now();
  }
}

void Engine::add_first_token_times(RequestOutput& out) {
  const auto it = beginnings_.find(out.id);
  if (it == beginnings_.end()) return;
  const auto us = [](auto duration) { return std::chrono::duration_cast<std::chrono::microseconds>(duration).count(); };
  const auto now = std::chrono::steady_clock::now();
  const auto first_step = it->second.first_step.value_or(now);
  out.queue_us = us(first_step - it->second.taken);
  out.prefill_us = us(now - first_step);
  beginnings_.erase(it);
}

void Engine::emit_error(RequestId id, const Error& e) {
  RequestOutput out;
  out.id = id;
  out.finish = FinishReason::kError;
  out.error_code = e.code;
  out.error_message = e.message;
  forget(id);
  outbox_[id.client].push_back(std::move(out));
}

void Engine::flush(StepId step) {
  if (outbox_.empty()) return;
  publish_snapshot();
  for (auto& [client, requests] : outbox_) deliver_(client, Outputs{step, load_, std::move(requests)});
  outbox_.clear();
  idle_announced_ = false;
}

// Front-ends hear of an engine's load with their own outputs; the last word of a busy period goes to all of them.
void Engine::announce_idle() {
  publish_snapshot();
  if (std::exchange(idle_announced_, true)) return;
  deliver_(kAllClients, Outputs{0, load_, {}});
}

void Engine::publish_snapshot() {
  const sched::SchedulerStats stats = scheduler_->stats();
  load_.num_running = stats.num_running;
  load_.num_waiting = stats.num_waiting;
  load_.num_free_blocks = stats.num_available_blocks;
  load_.num_blocks = stats.num_blocks;
  load_.num_preemptions = stats.num_preemptions;
  load_.prefix_cache_queries = stats.prefix_cache_queries;
  load_.prefix_cache_hits = stats.prefix_cache_hits;
  load_.num_drafts = stats.num_draft_tokens;
  load_.num_accepted_drafts = stats.num_accepted_draft_tokens;
  load_.group_epoch = voter_.epoch().value;
  load_.group_size = voter_.formed() ? static_cast<uint64_t>(group_size_) : 0;
  const std::lock_guard lock(mutex_);
  snapshot_.load = load_;
  snapshot_.busy = !in_flight_.empty();
  snapshot_.serving = serving_;
  snapshot_.experts = experts_;
  snapshot_.step_times = step_times_;
  snapshot_.group_step = in_flight_.empty() ? voter_.step() : in_flight_.front().group_step;
  if (!in_group()) return;
  const ep::EpPeer& peer = *executor_->info().ep_peer;
  snapshot_.group = {true, peer.address, peer.host_id, voter_.epoch().value, fault_epoch_};
}

}  // namespace manta::engine
