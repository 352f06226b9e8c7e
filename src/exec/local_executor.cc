#include "exec/local_executor.h"

#include <fmt/format.h>

#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>

#include "exec/step_inputs.h"

namespace manta::exec {
namespace {

using Clock = std::chrono::steady_clock;
using Part = model::StageClock::Part;

constexpr Epoch kEveryEpoch{std::numeric_limits<uint64_t>::max()};

bool waits_for_ranks(std::string_view stage) {
  return stage.starts_with("dispatch_") || stage.starts_with("combine_") || stage == "form_group";
}

class LocalExecutor : public Executor {
 public:
  explicit LocalExecutor(std::unique_ptr<DeviceModel> model)
      : model_(std::move(model)),
        inputs_(model_->info().max_num_seqs),
        thread_([this](std::stop_token stop) { model_->max_started() > 1 ? start_steps(stop) : work(stop); }) {
    if (model_->max_started() > 1) finisher_ = std::jthread([this](std::stop_token stop) { finish_steps(stop); });
  }

  ~LocalExecutor() override {
    model_->abort(kEveryEpoch);  // a step that waits for another rank ends now
    std::lock_guard lock(mutex_);
    thread_.request_stop();
    finisher_.request_stop();
    changed_.notify_all();
  }

  const ExecutorInfo& info() const override { return model_->info(); }

  Result<Ticket> submit(sched::StepPlan plan) override {
    std::lock_guard lock(mutex_);
    if (draining_) return error(ErrorCode::kFailedPrecondition, "the executor is drained");
    if (num_in_flight_ >= info().max_in_flight) {
      return error(ErrorCode::kFailedPrecondition, fmt::format("{} steps are in flight already", num_in_flight_));
    }
    const Ticket ticket{plan.id};
    order_.push_back(plan.id);
    plans_.push_back(std::move(plan));
    ++num_in_flight_;
    changed_.notify_all();
    return ticket;
  }

  Result<StepResult> collect(Ticket ticket, Deadline deadline) override {
    std::unique_lock lock(mutex_);
    if (order_.empty() || order_.front() != ticket.id) {
      return error(ErrorCode::kFailedPrecondition, fmt::format("step {} is not the oldest in flight", ticket.id));
    }
    if (!changed_.wait_until(lock, deadline, [this] { return !results_.empty(); })) {
      return error(ErrorCode::kDeadlineExceeded, fmt::format("step {} is not ready yet", ticket.id));
    }
    Result<StepResult> result = std::move(results_.front());
    results_.pop_front();
    order_.pop_front();
    --num_in_flight_;
    return result;
  }

  void on_ready(std::function<void()> wake) override {
    std::lock_guard lock(mutex_);
    wake_ = std::move(wake);
  }

  // The worker has nothing to do, so the model is this thread's for now.
  Status form_group(const ep::EpTopology& topology) override {
    {
      std::lock_guard lock(mutex_);
      if (num_in_flight_ > 0) {
        return error(ErrorCode::kFailedPrecondition, fmt::format("{} steps are in flight", num_in_flight_));
      }
    }
    MANTA_TRY(model_->form_group(topology));
    failed_ = false;
    return {};
  }

  void abort(Epoch epoch) override { model_->abort(epoch); }

  Status drain() override {
    std::lock_guard lock(mutex_);
    draining_ = true;
    changed_.notify_all();
    return {};
  }

  StageStamp where() const override {
    const model::StageClock::Reading at = model_->clock().read();
    return {at.step, at.layer, at.stage, at.counter, waits_for_ranks(at.stage)};
  }

 private:
  void work(std::stop_token stop) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop.stop_requested() || !plans_.empty(); });
      if (stop.stop_requested()) return;
      const sched::StepPlan plan = std::move(plans_.front());
      plans_.pop_front();
      lock.unlock();
      start_transfers(plan);
      Result<StepResult> result = failed_ ? Result<StepResult>(not_run(plan.id)) : run(plan);
      failed_ |= !result.ok();
      lock.lock();
      results_.push_back(std::move(result));
      changed_.notify_all();
      if (wake_) wake_();
    }
  }

  // A step on its way. A plan that could not be started waits for its turn too.
  struct Started {
    sched::StepPlan plan;
    Clock::time_point begin;
    bool transfers_wait = false;  // for the steps before
    std::optional<Error> error;
  };

  // Two threads where the device takes several steps: this one plans and enqueues, finish_steps() waits for results, so
  // that the device finds its next step already there.
  void start_steps(std::stop_token stop) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] {
        return stop.stop_requested() || (!plans_.empty() && static_cast<int>(started_.size()) < model_->max_started());
      });
      if (stop.stop_requested()) return;
      Started step{std::move(plans_.front()), Clock::now(), false, std::nullopt};
      plans_.pop_front();
      if (!step.plan.kv.empty() && step.plan.kv.before_step) {
        changed_.wait(lock, [&] { return stop.stop_requested() || started_.empty(); });
        if (stop.stop_requested()) return;
        step.begin = Clock::now();
      }
      step.transfers_wait = !step.plan.kv.empty() && !started_.empty();
      const bool failed = failed_;
      starting_ = true;
      lock.unlock();
      if (!step.transfers_wait) start_transfers(step.plan);
      model_->clock().begin_step(step.plan.id);
      const bool has_rows = !step.plan.prefills.empty() || !step.plan.decodes.empty();
      if (failed) {
        step.error = not_run(step.plan.id);
      } else if (const Status s = model_->start(inputs_.build(step.plan), has_rows || step.plan.dp.dummy); !s.ok()) {
        step.error = failure(step.plan, s.error());
      }
      lock.lock();
      failed_ = failed_ || step.error.has_value();
      starting_ = false;
      started_.push_back(std::move(step));
      changed_.notify_all();
    }
  }

  void finish_steps(std::stop_token stop) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop.stop_requested() || !started_.empty(); });
      if (stop.stop_requested()) return;
      const Started& step = started_.front();  // a deque that grows at its end moves nothing
      lock.unlock();
      if (step.transfers_wait) start_transfers(step.plan);
      Result<StepResult> result = step.error ? Result<StepResult>(*step.error) : finish(step);
      lock.lock();
      failed_ = failed_ || !result.ok();
      started_.pop_front();
      if (started_.empty() && !starting_) model_->clock().end_step();
      results_.push_back(std::move(result));
      changed_.notify_all();
      if (wake_) wake_();
    }
  }

  Result<StepResult> finish(const Started& step) {
    auto outputs = model_->finish();
    const auto now = Clock::now();
    if (!outputs.ok()) return failure(step.plan, outputs.error());
    StepResult result = inputs_.result(step.plan, std::move(outputs).value());
    if (model_->kv_connector() != nullptr) result.kv = model_->kv_connector()->poll();
    // From when it was begun, or the step before it was over: what it kept the device busy.
    result.timing.forward_us =
        std::chrono::duration_cast<std::chrono::microseconds>(now - std::max(step.begin, last_end_)).count();
    last_end_ = now;
    return result;
  }

  // The steps before are over: what they wrote may be offered, and nothing writes to blocks that changed hands since.
  // Also for a step that is not run: loads and sends do not depend on it, and nobody would ask for them again.
  void start_transfers(const sched::StepPlan& plan) {
    if (model_->kv_connector() != nullptr) model_->kv_connector()->start(plan.kv);
  }

  static Error not_run(StepId step) {
    return error(ErrorCode::kAborted, fmt::format("step {} was not run: an earlier step failed", step));
  }

  // After a failed step the device's state is not known: nothing runs until a group is formed, which resets it.
  Result<StepResult> run(const sched::StepPlan& plan) {
    model::StageClock& clock = model_->clock();
    const auto start = Clock::now();
    const ep::Traffic before = model_->traffic();
    clock.begin_step(plan.id);
    const bool has_rows = !plan.prefills.empty() || !plan.decodes.empty();
    auto outputs = model_->run(inputs_.build(plan), has_rows || plan.dp.dummy);
    if (!outputs.ok()) return failure(plan, outputs.error());
    StepResult result = inputs_.result(plan, std::move(outputs).value());
    if (model_->kv_connector() != nullptr) result.kv = model_->kv_connector()->poll();
    clock.end_step();
    StepTiming& t = result.timing;
    t.dispatch_us = clock.spent_us(Part::kDispatch);
    t.combine_us = clock.spent_us(Part::kCombine);
    t.sample_us = clock.spent_us(Part::kSample);
    t.forward_us = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count() - t.dispatch_us -
                   t.combine_us - t.sample_us;
    result.eplb = model_->eplb();
    const ep::Traffic after = model_->traffic();
    result.traffic = {after.rows - before.rows, after.bytes - before.bytes};
    return result;
  }

  Error failure(const sched::StepPlan& plan, const Error& cause) const {
    const model::StageClock::Reading at = model_->clock().read();
    return error(cause.code, fmt::format("rank {}, step {}, layer {}, stage {}: {}", model_->rank(), plan.id, at.layer,
                                         at.stage, cause.message));
  }

  std::unique_ptr<DeviceModel> model_;

  // The worker's own; the engine thread's while nothing is in flight.
  StepInputs inputs_;
  bool failed_ = false;
  Clock::time_point last_end_;  // finish_steps()'s own

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<sched::StepPlan> plans_;       // submitted, not begun
  std::deque<Started> started_;             // begun, not finished
  bool starting_ = false;                   // start_steps() is at work on one that is in no queue
  std::deque<StepId> order_;                // submitted, not collected
  std::deque<Result<StepResult>> results_;  // run, not collected
  std::function<void()> wake_;
  int num_in_flight_ = 0;
  bool draining_ = false;

  std::jthread finisher_;  // last, both: joined before the rest goes
  std::jthread thread_;
};

}  // namespace

Result<std::unique_ptr<Executor>> make_local_executor(const LocalExecutorOptions& options,
                                                      std::unique_ptr<transfer::KvConnectorWorker> connector) {
  MANTA_ASSIGN(auto model, DeviceModel::load(options, std::move(connector)));
  return std::unique_ptr<Executor>(std::make_unique<LocalExecutor>(std::move(model)));
}

}  // namespace manta::exec
