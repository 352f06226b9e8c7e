#include "exec/local_executor.h"

#include <fmt/format.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "exec/step_inputs.h"

namespace manta::exec {
namespace {

using Clock = std::chrono::steady_clock;

class LocalExecutor : public Executor {
 public:
  explicit LocalExecutor(std::unique_ptr<DeviceModel> model)
      : model_(std::move(model)),
        inputs_(model_->info().max_num_seqs),
        thread_([this](std::stop_token stop) { work(stop); }) {}

  ~LocalExecutor() override {
    model_->abort();  // a step that waits for another rank ends now
    std::lock_guard lock(mutex_);
    thread_.request_stop();
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

  Status move_experts(const ep::ExpertMoves& moves) override {
    if (moves.moves.empty()) return {};
    return error(ErrorCode::kUnimplemented, "this executor was started without an expert mover");
  }

  Status drain() override {
    std::lock_guard lock(mutex_);
    draining_ = true;
    changed_.notify_all();
    return {};
  }

  StageStamp where() const override {
    const model::StageClock::Reading at = model_->clock().read();
    return {at.step, at.layer, at.stage, at.counter};
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
      Result<StepResult> result = failed_ ? Result<StepResult>(not_run(plan)) : run(plan);
      lock.lock();
      failed_ |= !result.ok();
      results_.push_back(std::move(result));
      changed_.notify_all();
    }
  }

  Error not_run(const sched::StepPlan& plan) const {
    return error(ErrorCode::kAborted, fmt::format("step {} was not run: an earlier step failed", plan.id));
  }

  // After a failed step the device's state is not known: nothing runs any more.
  Result<StepResult> run(const sched::StepPlan& plan) {
    model::StageClock& clock = model_->clock();
    transfer::KvConnectorWorker* connector = model_->kv_connector();
    const auto start = Clock::now();
    clock.begin_step(plan.id);
    // The step before is over, so nothing writes to blocks that changed hands since: loads may fill them.
    if (connector != nullptr) connector->start(plan.kv);
    const bool has_rows = !plan.prefills.empty() || !plan.decodes.empty();
    auto outputs = model_->run(inputs_.build(plan), has_rows || model_->ep_size() > 1);
    if (!outputs.ok()) return failure(plan, outputs.error());
    StepResult result = inputs_.result(plan, std::move(outputs).value());
    if (connector != nullptr) result.kv = connector->poll();
    clock.end_step();
    result.timing.forward_us = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
    return result;
  }

  Error failure(const sched::StepPlan& plan, const Error& cause) const {
    const model::StageClock::Reading at = model_->clock().read();
    return error(cause.code, fmt::format("rank {}, step {}, layer {}, stage {}: {}", model_->rank(), plan.id, at.layer,
                                         at.stage, cause.message));
  }

  std::unique_ptr<DeviceModel> model_;

  // The worker's own.
  StepInputs inputs_;
  bool failed_ = false;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<sched::StepPlan> plans_;       // submitted, not begun
  std::deque<StepId> order_;                // submitted, not collected
  std::deque<Result<StepResult>> results_;  // run, not collected
  int num_in_flight_ = 0;
  bool draining_ = false;

  std::jthread thread_;  // last: joined before the rest goes
};

}  // namespace

Result<std::unique_ptr<Executor>> make_local_executor(const LocalExecutorOptions& options,
                                                      std::unique_ptr<transfer::KvConnectorWorker> connector) {
  MANTA_ASSIGN(auto model, DeviceModel::load(options, std::move(connector)));
  return std::unique_ptr<Executor>(std::make_unique<LocalExecutor>(std::move(model)));
}

}  // namespace manta::exec
