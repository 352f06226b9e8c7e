// Drives a Scheduler against a FakeExecutor, the way the engine does, and records what each request got.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "exec/fake_executor.h"
#include "sched/scheduler.h"

namespace manta::sched {

struct Outcome {
  std::vector<TokenId> tokens;
  std::vector<sample::TokenLogprobs> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  TokenId stop_token = -1;
  int num_cached_tokens = 0;
  Error error;
  bool operator==(const Outcome& o) const {  // what must not depend on how the request was scheduled
    return tokens == o.tokens && finish == o.finish && stop_token == o.stop_token;
  }
};

class Simulation {
 public:
  static constexpr int kVocab = 50;

  // depth: plans in flight; 1 = sync, 2 = async.
  explicit Simulation(SchedulerOptions options, int depth = 1, kv::KvConnectorScheduler* connector = nullptr)
      : depth_(depth) {
    auto made = Scheduler::make(options, connector);
    EXPECT_TRUE(made.ok()) << made.error().message;
    scheduler = std::move(made).value();
    exec::FakeExecutorOptions fake;
    fake.geometry.num_blocks = options.num_blocks;
    fake.geometry.block_size = options.block_size;
    fake.max_num_seqs = options.max_num_seqs;
    fake.max_num_batched_tokens = options.max_num_batched_tokens;
    fake.max_model_len = options.max_model_len;
    fake.num_speculative_tokens = options.num_speculative_tokens;
    fake.vocab_size = kVocab;
    fake.verify_all_rows = true;
    fake.next_token = [](uint64_t prefix, int) { return static_cast<TokenId>(prefix % kVocab); };
    executor = std::make_unique<exec::FakeExecutor>(fake);
  }

  // Plans once more if there is room in flight, or collects the oldest step. False: nothing to do.
  bool step() {
    if (static_cast<int>(submitted_.size()) < depth_) {
      if (auto plan = scheduler->plan({})) {
        if (on_plan) on_plan(*plan);
        auto ticket = executor->submit(std::move(*plan));
        EXPECT_TRUE(ticket.ok()) << ticket.error().message;
        submitted_.push_back(*ticket);
        ++num_steps;
        if (static_cast<int>(submitted_.size()) < depth_) return true;
      } else if (submitted_.empty() && scheduler->awaits_peers()) {
        auto ticket = executor->submit(scheduler->plan_transfers({}));
        EXPECT_TRUE(ticket.ok()) << ticket.error().message;
        submitted_.push_back(*ticket);
      }
    }
    return collect();
  }

  bool collect() {
    if (submitted_.empty()) return false;
    auto result = executor->collect(submitted_.front(), exec::Deadline::max());
    submitted_.pop_front();
    EXPECT_TRUE(result.ok()) << result.error().message;
    if (!result.ok()) return false;
    auto events = scheduler->collect(result->id, std::move(result->slots), result->kv);
    EXPECT_TRUE(events.ok()) << events.error().message;
    for (auto& event : *events) record(event);
    EXPECT_EQ(scheduler->blocks().counts(), scheduler->blocks().recount());
    return true;
  }

  // The group of the executor falls apart and is formed again: nothing in flight is ever collected.
  void abandon() {
    executor->abort(Epoch{++epoch_});
    while (!submitted_.empty()) {
      const auto result = executor->collect(submitted_.front(), exec::Deadline::max());
      EXPECT_FALSE(result.ok());
      submitted_.pop_front();
    }
    scheduler->abandon_steps();
    EXPECT_EQ(scheduler->blocks().counts(), scheduler->blocks().recount());
    const Status formed = executor->form_group({Epoch{epoch_}, 0, 1, {}});
    EXPECT_TRUE(formed.ok()) << formed.error().message;
  }

  void record(RequestEvent& event) {
    Outcome& out = outcomes[event.id.serial];
    EXPECT_EQ(out.finish, FinishReason::kNone) << "an event after the last one";
    out.tokens.insert(out.tokens.end(), event.tokens.begin(), event.tokens.end());
    out.prompt_logprobs.insert(out.prompt_logprobs.end(), event.prompt_logprobs.begin(), event.prompt_logprobs.end());
    out.finish = event.finish;
    out.stop_token = event.stop_token;
    out.error = event.error;
    out.num_cached_tokens += event.num_cached_tokens;
  }

  // Until nothing is left to do. Fails the test rather than running forever.
  void run(int max_steps = 20000) {
    for (int i = 0; i < max_steps; ++i) {
      if (!step()) return;
    }
    ADD_FAILURE() << "still busy after " << max_steps << " steps";
  }

  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<exec::FakeExecutor> executor;
  std::map<uint64_t, Outcome> outcomes;
  std::function<void(const StepPlan&)> on_plan;
  int num_steps = 0;

 private:
  int depth_;
  uint64_t epoch_ = 0;
  std::deque<exec::Ticket> submitted_;
};

inline Request make_request(uint64_t serial, std::vector<TokenId> prompt, int max_tokens) {
  Request request;
  request.id = {1, serial};
  request.num_prompt_tokens = static_cast<int>(prompt.size());
  request.tokens = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  return request;
}

inline std::vector<TokenId> counting_prompt(int n, int first = 0) {
  std::vector<TokenId> out(n);
  for (int i = 0; i < n; ++i) out[i] = (first + i) % Simulation::kVocab;
  return out;
}

}  // namespace manta::sched
