// The engine as one rank of an expert-parallel group: every rank runs the same steps, so that each finds its peers in
// dispatch and combine. A step goes
//   planned     while the one before runs; its rows are known
//   voted       the coordinator hears what this rank brings
//   decided     all have voted: submitted as decided, or a dummy step (no rows, experts only) when it brought nothing
//   collected
// and an idle group costs nothing: with no work anywhere the decision is withheld and everybody stays parked.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "engine/engine.h"

namespace manta::engine {
namespace {

using Clock = std::chrono::steady_clock;

// A rank that was told to drain on its own leaves the others after this; told together, ranks leave together.
constexpr std::chrono::seconds kLeaveAloneAfter{2};
// A drain that needs a group which does not come back ends after this, with an error for what is left.
constexpr std::chrono::seconds kDrainWithoutGroup{10};

bool has_rows(const sched::StepPlan& plan) {
  return !plan.prefills.empty() || !plan.decodes.empty();
}

}  // namespace

Status Engine::run_in_group() {
  executor_->on_ready([this] {
    {
      const std::lock_guard lock(mutex_);
      result_ready_ = true;
    }
    wake_.notify_one();
  });
  bool progress = true;
  while (true) {
    if (!progress && in_flight_.empty() && !planned_) announce_idle();
    for (Command& command : take_group_commands(!progress)) {
      std::visit([this](auto& c) { apply(std::move(c)); }, command);
    }
    flush(0);
    MANTA_TRY(collect_ready());
    MANTA_TRY(follow_group());
    if (may_leave()) break;
    progress = false;
    if (!voter_.formed()) continue;
    MANTA_TRY(plan_ahead());
    vote();
    MANTA_ASSIGN(progress, submit_decided());
  }
  if (voter_.formed()) MANTA_TRY(leave_group());
  return executor_->drain();
}

std::deque<Engine::Command> Engine::take_group_commands(bool park) {
  std::unique_lock lock(mutex_);
  const auto something = [this] {
    // A step that is planned or runs brings the news itself.
    const bool transfers = transfers_got_on_ && voter_.formed() && !planned_ && in_flight_.empty();
    return !mailbox_.empty() || result_ready_ || transfers || stopping_ || (draining_ && !drained_at_);
  };
  if (park && !draining_) {
    wake_.wait(lock, something);
  } else if (park) {
    wake_.wait_for(lock, std::chrono::milliseconds(100), something);  // its patience ends by the clock
  }
  if (draining_ && !drained_at_) drained_at_ = Clock::now();
  result_ready_ = false;
  return std::exchange(mailbox_, {});
}

void Engine::set_group(GroupState state) {
  if (!in_group()) return;
  executor_->abort(state.epoch);
  post(std::move(state));
}

void Engine::set_decision(Epoch epoch, const cluster::Decision& decision) {
  post(DecisionCommand{epoch, decision});
}

void Engine::apply(GroupState&& state) {
  group_ = std::move(state);
}

void Engine::apply(DecisionCommand&& command) {
  voter_.on_decision(command.epoch, command.decision);
}

// ---- the group comes and goes ----

Status Engine::follow_group() {
  if (voter_.formed() && (group_.epoch != voter_.epoch() || fault_epoch_ == voter_.epoch().value)) {
    MANTA_TRY(leave_group());
  }
  if (voter_.formed() || !group_.complete || fault_epoch_ == group_.epoch.value) return {};
  return form_group();
}

Status Engine::form_group() {
  const Status formed = executor_->form_group(group_.topology);
  if (!formed.ok()) {
    // Overtaken by a newer group, or a peer did not come. The coordinator decides which epoch is next.
    spdlog::warn("rank {}: the group of epoch {} did not form: {}", options_.rank, group_.epoch.value,
                 formed.error().message);
    fault_epoch_ = group_.epoch.value;
    publish_snapshot();
    group_link_.changed();
    return {};
  }
  voter_.form(group_.epoch);
  group_size_ = group_.topology.size;
  spdlog::info("rank {}: in the group of epoch {}, of {} ranks", options_.rank, group_.epoch.value,
               group_.topology.size);
  begin_serving();
  publish_snapshot();
  group_link_.changed();
  return {};
}

// What finished is kept; requests of steps that did not go back to waiting, their tokens unchanged.
Status Engine::leave_group() {
  executor_->abort(Epoch{voter_.epoch().value + 1});
  bool ready = true;
  while (!in_flight_.empty()) MANTA_TRY(collect_group_step(exec::Deadline::max(), ready));
  MANTA_TRY(keep_transfers());
  scheduler_->abandon_steps();
  planned_.reset();
  planned_at_.reset();
  spdlog::info("rank {}: left the group of epoch {}", options_.rank, voter_.epoch().value);
  voter_.dissolve();
  publish_snapshot();
  return {};
}

// A plan that is given up had words for the connector, which are said once.
Status Engine::keep_transfers() {
  if (!planned_ || planned_->kv.empty()) return {};
  sched::StepPlan plan;
  plan.id = planned_->id;
  plan.kv = std::move(planned_->kv);
  MANTA_ASSIGN(const exec::Ticket ticket, executor_->submit(std::move(plan)));
  in_flight_.push_back({ticket, voter_.step(), true});
  bool ready = true;
  return collect_group_step(exec::Deadline::max(), ready);
}

// ---- steps ----

Status Engine::collect_ready() {
  for (bool ready = true; ready && !in_flight_.empty();) {
    MANTA_TRY(collect_group_step(exec::Deadline::min(), ready));
  }
  return {};
}

Status Engine::collect_group_step(exec::Deadline deadline, bool& ready) {
  const InFlight step = in_flight_.front();
  auto result = executor_->collect(step.ticket, deadline);
  if (!result.ok() && result.error().code == ErrorCode::kDeadlineExceeded) {
    ready = false;
    return {};
  }
  in_flight_.pop_front();
  if (!result.ok()) {
    if (result.error().code != ErrorCode::kAborted) return result.error();
    ++load_.num_aborted_steps;
    // Nobody may have left; then somebody must say that the group is broken.
    if (fault_epoch_ != voter_.epoch().value && group_.epoch == voter_.epoch()) {
      spdlog::warn("{}", result.error().message);
      fault_epoch_ = voter_.epoch().value;
      publish_snapshot();
      group_link_.changed();
    }
    return {};
  }
  std::vector<sched::RequestEvent> events;
  if (step.dummy) {
    note_transfers(result->kv.counters);
    load_.ep_dispatch_rows += result->traffic.rows;
    load_.ep_dispatch_bytes += result->traffic.bytes;
    note_experts(result->eplb);
    idle_announced_ = false;  // front-ends hear of it with the last word of this busy period
    events = scheduler_->transferred(result->kv);
  } else {
    add_result(*result);
    MANTA_ASSIGN(events, scheduler_->collect(result->id, std::move(result->slots), result->kv));
  }
  for (sched::RequestEvent& event : events) emit(std::move(event));
  flush(step.group_step);
  publish_snapshot();
  return {};
}

// The next step that has rows waits for its decision. Steps without rows are this rank's own affair.
Status Engine::plan_ahead() {
  const auto begin = Clock::now();
  while (!planned_ && has_room()) {
    std::optional<sched::StepPlan> plan = scheduler_->plan(sched::DpAgreement{});
    for (sched::RequestEvent& event : scheduler_->take_events()) emit(std::move(event));
    if (!plan) break;
    note_first_step(*plan);
    if (has_rows(*plan)) {
      planned_ = std::move(plan);
      break;
    }
    MANTA_TRY(submit(std::move(*plan)));
  }
  if (!planned_ && in_flight_.empty() && take_transfer_news() && scheduler_->awaits_peers()) {
    MANTA_TRY(submit(scheduler_->plan_transfers(sched::DpAgreement{})));
    idle_announced_ = false;  // what the transfers changed is news to the front-ends
  }
  flush(0);
  const auto spent = Clock::now() - begin;
  load_.schedule_us += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(spent).count());
  return {};
}

int Engine::wanted_microbatches(const sched::StepPlan& plan) const {
  const int threshold =
      plan.prefills.empty() ? options_.dbo_decode_token_threshold : options_.dbo_prefill_token_threshold;
  return threshold > 0 && plan.max_num_tokens() >= threshold ? 2 : 1;
}

void Engine::vote() {
  if (!has_room()) return;
  cluster::Vote vote;
  if (planned_) {
    vote.has_work = true;
    vote.all_decode = planned_->prefills.empty();
    vote.num_tokens = planned_->max_num_tokens();
    vote.num_microbatches = wanted_microbatches(*planned_);
  } else {
    vote.leaving =
        drained_at_.has_value() && compiling_.empty() && !scheduler_->has_requests() && !scheduler_->awaits_peers();
  }
  if (const auto next = voter_.next(vote)) group_link_.vote(voter_.epoch(), *next);
  if (planned_ && in_flight_.empty() && !planned_at_) planned_at_ = Clock::now();
}

// True: something was submitted.
Result<bool> Engine::submit_decided() {
  if (!has_room()) return false;
  const uint64_t step = voter_.step();
  const auto decision = voter_.take_decision();
  if (!decision) return false;
  if (decision->leave) {
    group_left_ = true;
    return true;
  }
  sched::StepPlan plan;
  const bool dummy = !planned_ || !decision->counted;
  if (!dummy) {
    plan = std::move(*planned_);
    planned_.reset();
  }
  plan.epoch = plan.dp.epoch = voter_.epoch();
  plan.dp.all_decode = decision->all_decode;
  plan.dp.padded_num_tokens = executor_->info().pads_steps ? decision->max_num_tokens : 0;
  plan.dp.num_microbatches = decision->num_microbatches;
  plan.dp.dummy = dummy;
  if (dummy) {
    ++load_.num_dummy_steps;
  } else {
    count_microbatches(plan);
    if (planned_at_) {
      const auto waited = Clock::now() - *planned_at_;
      load_.agree_wait_us +=
          static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(waited).count());
    }
  }
  planned_at_.reset();
  MANTA_ASSIGN(const exec::Ticket ticket, executor_->submit(std::move(plan)));
  in_flight_.push_back({ticket, step, dummy});
  publish_snapshot();  // busy from here on: a stage counter that stands still is a fault
  return true;
}

void Engine::count_microbatches(const sched::StepPlan& plan) {
  if (options_.dbo_decode_token_threshold == 0) return;
  if (plan.dp.num_microbatches > 1) {
    ++load_.dbo_split_steps;
  } else if (wanted_microbatches(plan) > 1) {
    ++load_.dbo_vote_failed_steps;
  } else {
    ++load_.dbo_below_threshold_steps;
  }
}

// ---- leaving ----

bool Engine::may_leave() {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return true;
    if (!drained_at_ || !mailbox_.empty()) return false;
  }
  const auto drained_for = Clock::now() - *drained_at_;
  const bool alone = !voter_.formed() && drained_for >= kDrainWithoutGroup;
  if (alone) give_up_requests("this deployment is shutting down and lost a rank; send the request again");
  if (!compiling_.empty() || scheduler_->has_requests()) return false;
  // Together, when nobody has anything left; or alone, when the others stay.
  return group_left_ || !voter_.formed() || (drained_for >= kLeaveAloneAfter && !group_.draining);
}

void Engine::give_up_requests(const std::string& why) {
  std::vector<RequestId> ids;
  for (const auto& [client, serials] : unfinished_) {
    for (const uint64_t serial : serials) ids.push_back({client, serial});
  }
  for (const RequestId id : ids) {
    compiling_.erase(id);
    scheduler_->abort(id);
    emit_error(id, error(ErrorCode::kUnavailable, why));
  }
  flush(0);
}

}  // namespace manta::engine
