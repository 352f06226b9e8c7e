// An engine in a few lines, for tests: a scheduler in front of an executor, driven until every request has ended.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/scheduler_options.h"
#include "exec/local_executor.h"
#include "sched/scheduler.h"

namespace manta::exec {

struct Generated {
  std::vector<TokenId> tokens;
  std::vector<sample::TokenLogprobs> logprobs;
  std::vector<sample::TokenLogprobs> prompt_logprobs;
  sched::FinishReason finish = sched::FinishReason::kNone;
  Error error;
};

class Serving {
 public:
  // plans_in_flight: 2 = async scheduling.
  Serving(std::unique_ptr<Executor> executor, bool prefix_caching, int plans_in_flight)
      : executor_(std::move(executor)), plans_in_flight_(plans_in_flight) {
    sched::SchedulerOptions options = engine::scheduler_options(executor_->info());
    options.enable_prefix_caching = prefix_caching;
    auto made = sched::Scheduler::make(options);
    EXPECT_TRUE(made.ok()) << made.error().message;
    scheduler_ = std::move(made).value();
  }

  // By index of the request. Ids are given here.
  std::vector<Generated> run(const std::vector<sched::Request>& requests) {
    std::vector<Generated> out(requests.size());
    const uint64_t first = next_serial_;
    for (sched::Request request : requests) {
      request.id = {1, next_serial_++};
      const Status added = scheduler_->add(std::move(request));
      EXPECT_TRUE(added.ok()) << added.error().message;
    }
    std::deque<Ticket> in_flight;
    while (true) {
      while (static_cast<int>(in_flight.size()) < plans_in_flight_) {
        sched::DpAgreement dp;
        dp.num_microbatches = num_microbatches;
        auto plan = scheduler_->plan(dp);
        if (!plan) break;
        if (plan->prefills.size() + plan->decodes.size() < 2) plan->dp.num_microbatches = 1;
        auto ticket = executor_->submit(std::move(*plan));
        EXPECT_TRUE(ticket.ok()) << ticket.error().message;
        if (!ticket.ok()) return out;
        in_flight.push_back(*ticket);
        ++num_steps_;
      }
      if (in_flight.empty()) break;
      auto result = executor_->collect(in_flight.front(), Deadline::max());
      in_flight.pop_front();
      EXPECT_TRUE(result.ok()) << result.error().message;
      if (!result.ok()) return out;
      auto events = scheduler_->collect(result->id, std::move(result->slots));
      EXPECT_TRUE(events.ok()) << events.error().message;
      if (!events.ok()) return out;
      for (auto& event : *events) record(event, out[event.id.serial - first]);
    }
    EXPECT_FALSE(scheduler_->has_requests());
    EXPECT_EQ(scheduler_->blocks().num_available(), scheduler_->blocks().num_blocks());
    return out;
  }

  int num_microbatches = 1;  // of steps with more than one slice

  sched::SchedulerStats stats() const { return scheduler_->stats(); }
  Executor& executor() { return *executor_; }
  sched::Scheduler& scheduler() { return *scheduler_; }
  int num_steps() const { return num_steps_; }

  static void record(sched::RequestEvent& event, Generated& out) {
    EXPECT_EQ(out.finish, sched::FinishReason::kNone);
    out.tokens.insert(out.tokens.end(), event.tokens.begin(), event.tokens.end());
    std::move(event.logprobs.begin(), event.logprobs.end(), std::back_inserter(out.logprobs));
    std::move(event.prompt_logprobs.begin(), event.prompt_logprobs.end(), std::back_inserter(out.prompt_logprobs));
    out.finish = event.finish;
    out.error = event.error;
  }

 private:
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<sched::Scheduler> scheduler_;
  int plans_in_flight_;
  int num_steps_ = 0;
  uint64_t next_serial_ = 1;
};

}  // namespace manta::exec
