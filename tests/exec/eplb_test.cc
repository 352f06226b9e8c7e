// Experts move between ranks while they serve; no token and no bit of a logprob changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <thread>

#include "eval_prompts.h"
#include "serving.h"

namespace manta::exec {
namespace {

constexpr StepId kDummyStep = StepId{1} << 40;

LocalExecutorOptions tiny() {
  LocalExecutorOptions options;
  options.model = kTinyModel;
  options.device = "cpu";
  options.backend.num_threads = 1;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 256;
  options.max_model_len = 1024;
  options.block_size = 16;
  options.num_blocks = 512;
  return options;
}

// Ranks as threads, in lock-step: a rank that has nothing runs a dummy step.
class Group {
 public:
  Group(int size, const EplbOptions& eplb) : size_(size), eplb_(eplb), schedulers_(size) {
    for (int r = 0; r < size; ++r) executors_.push_back(start(r));
  }
  void replace(int rank) { executors_[rank] = start(rank); }

  // there: ranks of it, ascending; without any: all.
  void form(Epoch epoch, std::vector<int> there = {}) {
    if (there.empty()) {
      for (int rank = 0; rank < size_; ++rank) there.push_back(rank);
    }
    there_ = std::move(there);
    ep::EpTopology topology;
    topology.epoch = epoch;
    topology.size = static_cast<int>(there_.size());
    for (const int rank : there_) topology.peers.push_back(*executors_[rank]->info().ep_peer);
    each([&](int rank) {
      schedulers_[rank] = nullptr;  // forming takes all slots back
      ep::EpTopology mine = topology;
      mine.rank = place_of(rank);
      const Status formed = executors_[rank]->form_group(mine);
      EXPECT_TRUE(formed.ok()) << formed.error().message;
    });
  }

  // Request i runs on the rank that is number i % those that are there.
  std::vector<std::vector<TokenId>> run(const std::vector<sched::Request>& requests) {
    std::vector<std::vector<TokenId>> tokens(requests.size());
    std::atomic<int> working{0}, seen{0};
    std::barrier all(static_cast<ptrdiff_t>(there_.size()), [&]() noexcept { seen = working.exchange(0); });
    each([&](int rank) {
      Executor& executor = *executors_[rank];
      if (!schedulers_[rank])
        schedulers_[rank] = sched::Scheduler::make(engine::scheduler_options(executor.info())).value();
      sched::Scheduler* scheduler = schedulers_[rank].get();
      for (size_t i = place_of(rank); i < requests.size(); i += there_.size()) {
        sched::Request request = requests[i];
        request.id = {1, i + 1};
        ASSERT_TRUE(scheduler->add(std::move(request)).ok());
      }
      for (StepId dummy = kDummyStep;; ++dummy) {
        auto plan = scheduler->plan(sched::DpAgreement{});
        while (plan && plan->prefills.empty() && plan->decodes.empty()) {  // this rank's own affair
          step(rank, std::move(*plan), *scheduler, tokens);
          plan = scheduler->plan(sched::DpAgreement{});
        }
        if (plan) ++working;
        all.arrive_and_wait();
        if (seen == 0) return;
        if (!plan) {
          plan.emplace();
          plan->id = dummy;
          plan->dp.dummy = true;
        }
        step(rank, std::move(*plan), *scheduler, tokens);
      }
    });
    return tokens;
  }

  EplbCounts counts;  // of the first rank that is there, after its last step

 private:
  std::unique_ptr<Executor> start(int rank) {
    LocalExecutorOptions options = tiny();
    options.ep_rank = rank;
    options.ep_size = size_;
    options.num_redundant_experts = 2 * size_;
    options.transport.kind = "shm";
    options.eplb = eplb_;
    auto made = make_local_executor(options);
    EXPECT_TRUE(made.ok()) << made.error().message;
    return std::move(made).value();
  }
  void step(int rank, sched::StepPlan plan, sched::Scheduler& scheduler, std::vector<std::vector<TokenId>>& tokens) {
    const bool dummy = plan.dp.dummy;
    auto ticket = executors_[rank]->submit(std::move(plan));
    ASSERT_TRUE(ticket.ok()) << ticket.error().message;
    auto result = executors_[rank]->collect(*ticket, Deadline::max());
    ASSERT_TRUE(result.ok()) << result.error().message;
    if (rank == there_.front()) counts = result->eplb;
    if (dummy) return;
    auto events = scheduler.collect(result->id, std::move(result->slots));
    ASSERT_TRUE(events.ok()) << events.error().message;
    for (const auto& event : *events) {
      auto& out = tokens[event.id.serial - 1];
      out.insert(out.end(), event.tokens.begin(), event.tokens.end());
    }
  }
  void each(const std::function<void(int)>& body) const {
    std::vector<std::thread> threads;
    for (const int r : there_) threads.emplace_back([&body, r] { body(r); });
    for (std::thread& thread : threads) thread.join();
  }

  int place_of(int rank) const {
    return static_cast<int>(std::find(there_.begin(), there_.end(), rank) - there_.begin());
  }

  const int size_;
  const EplbOptions eplb_;
  std::vector<int> there_;
  std::vector<std::unique_ptr<Executor>> executors_;
  std::vector<std::unique_ptr<sched::Scheduler>> schedulers_;  // of one group: they know which slots are taken
};

class Eplb : public ::testing::Test {
 protected:
  void SetUp() override {
    static const EvalPrompts prompts;
    for (const EvalPrompt& prompt : prompts.some(10)) {
      sched::Request& request = requests_.emplace_back();
      request.tokens = prompt.tokens;
      request.num_prompt_tokens = static_cast<int>(request.tokens.size());
      request.sampling.max_tokens = 24;
      request.sampling.temperature = 0;
      request.sampling.eos_token_ids = {1};
    }
    auto alone = make_local_executor(tiny());
    ASSERT_TRUE(alone.ok()) << alone.error().message;
    for (const Generated& g : Serving(std::move(alone).value(), false, 1).run(requests_)) expected_.push_back(g.tokens);
  }

  static EplbOptions every(int64_t steps) {
    EplbOptions eplb;
    eplb.enabled = true;
    eplb.window_size = steps;
    eplb.step_interval = steps;
    return eplb;
  }

  // Experts are packed beside the steps, at low priority: how many steps that takes is the machine's affair.
  void run_until_rearranged(Group& group) {
    const uint64_t before = group.counts.num_rearrangements;
    do {
      ASSERT_EQ(group.run(requests_), expected_) << "after " << group.counts.num_rearrangements << " rearrangements";
    } while (group.counts.num_rearrangements == before);
  }

  std::vector<sched::Request> requests_;
  std::vector<std::vector<TokenId>> expected_;
};

TEST_F(Eplb, SameTokensWhileExpertsMove) {
  for (const int size : {2, 4}) {
    for (const bool use_async : {true, false}) {
      EplbOptions eplb = every(4);
      eplb.use_async = use_async;
      eplb.log_balancedness = true;
      Group group(size, eplb);
      group.form(Epoch{1});
      run_until_rearranged(group);
      run_until_rearranged(group);
      ASSERT_NE(group.counts.window, nullptr);
      const EplbWindow& window = *group.counts.window;
      EXPECT_THAT(window.balancedness, ::testing::Each(::testing::AllOf(::testing::Gt(0), ::testing::Le(1))));
      EXPECT_EQ(window.tokens.size(), window.balancedness.size() * window.num_experts);
    }
  }
}

TEST_F(Eplb, AReplacementTakesOverThePlacementOfTheGroup) {
  Group group(2, every(4));
  group.form(Epoch{1});
  run_until_rearranged(group);
  group.replace(1);  // it starts with the linear placement
  group.form(Epoch{2});
  EXPECT_EQ(group.run(requests_), expected_);
  group.replace(0);
  group.form(Epoch{3});
  EXPECT_EQ(group.run(requests_), expected_);
}

TEST_F(Eplb, ExpertsMoveWhileARankIsMissing) {
  Group group(4, every(4));
  group.form(Epoch{1});
  run_until_rearranged(group);
  const std::vector<std::vector<int>> others = {{0, 1, 3}, {0, 3}};
  for (size_t i = 0; i < others.size(); ++i) {
    group.form(Epoch{2 + i}, others[i]);
    run_until_rearranged(group);
  }
  group.replace(2);
  group.form(Epoch{4});
  run_until_rearranged(group);
}

TEST_F(Eplb, NothingMovesWithoutEnoughGain) {
  EplbOptions eplb = every(4);
  eplb.min_gain = 0.999;
  Group group(2, eplb);
  group.form(Epoch{1});
  EXPECT_EQ(group.run(requests_), expected_);
  EXPECT_EQ(group.counts.num_rearrangements, 0u);
  EXPECT_NE(group.counts.window, nullptr);  // it was looked at
}

}  // namespace
}  // namespace manta::exec
