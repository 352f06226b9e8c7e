// What must hold after any history: everybody ends, the text does not depend on how it was scheduled, no step is over
// its bounds, every block comes back. The fake executor checks every cache row of every plan.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "simulation.h"

namespace manta::sched {
namespace {

struct Case {
  uint32_t seed;
  SchedulerOptions options;
  std::vector<Request> requests;
};

Case random_case(uint32_t seed) {
  std::mt19937 rng(seed);
  auto between = [&rng](int low, int high) { return low + static_cast<int>(rng() % (high - low + 1)); };
  Case out;
  out.seed = seed;
  SchedulerOptions& o = out.options;
  o.block_size = between(1, 8);
  o.max_num_seqs = between(1, 6);
  o.max_model_len = between(24, 96);
  o.max_num_batched_tokens = o.max_num_seqs + between(0, 24);
  o.num_blocks = (o.max_model_len + o.block_size - 1) / o.block_size + between(0, 20);
  o.num_speculative_tokens = between(0, 3);
  o.enable_prefix_caching = between(0, 3) > 0;
  o.policy = between(0, 1) ? Policy::kPriority : Policy::kFcfs;
  o.long_prefill_token_threshold = between(0, 2) ? 0 : between(1, 8);
  o.watermark = between(0, 1) * 0.1;
  const int num_requests = between(1, 20);
  for (int i = 1; i <= num_requests; ++i) {
    // Few first tokens and prompts that count up from them: many share prefixes.
    Request request = make_request(i, counting_prompt(between(1, o.max_model_len - 1), between(0, 2)), between(1, 40));
    request.priority = between(0, 2);
    if (between(0, 1)) request.sampling.eos_token_ids = {between(0, 9), between(10, 19)};
    request.sampling.min_tokens = between(0, 4);
    if (between(0, 4) == 0) request.sampling.num_prompt_logprobs = 0;
    out.requests.push_back(request);
  }
  return out;
}

// Alone, in one piece, in a fresh engine: what the text is by definition.
Outcome alone(const Case& test, const Request& request) {
  SchedulerOptions options = test.options;
  options.num_speculative_tokens = 0;
  options.enable_prefix_caching = false;
  options.max_num_batched_tokens = options.max_model_len;
  options.long_prefill_token_threshold = 0;
  Simulation sim(options);
  EXPECT_TRUE(sim.scheduler->add(request).ok());
  sim.run();
  return sim.outcomes[request.id.serial];
}

void check_plan(const Case& test, const StepPlan& plan) {
  EXPECT_LE(plan.max_num_tokens(), test.options.max_num_batched_tokens);
  EXPECT_LE(static_cast<int>(plan.prefills.size() + plan.decodes.size()), test.options.max_num_seqs);
  for (const auto& decode : plan.decodes) {
    EXPECT_LE(decode.max_num_tokens, 1 + test.options.num_speculative_tokens);
    EXPECT_LE(decode.max_seq_len, test.options.max_model_len);
  }
}

TEST(SchedulerProperty, TextDoesNotDependOnScheduling) {
  uint64_t num_preemptions = 0, num_hits = 0, num_accepted = 0;
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const Case test = random_case(seed);
    std::map<uint64_t, Outcome> expected;
    for (const Request& request : test.requests) expected[request.id.serial] = alone(test, request);
    for (int depth : {1, 2}) {
      Simulation sim(test.options, depth);
      sim.on_plan = [&](const StepPlan& plan) { check_plan(test, plan); };
      std::mt19937 rng(seed);
      for (const Request& request : test.requests) {
        ASSERT_TRUE(sim.scheduler->add(request).ok());
        for (uint32_t i = rng() % 4; i > 0; --i) sim.step();
      }
      sim.run();
      EXPECT_FALSE(sim.scheduler->has_requests());
      EXPECT_EQ(sim.scheduler->blocks().num_available(), test.options.num_blocks);
      for (const Request& request : test.requests) {
        const Outcome& got = sim.outcomes[request.id.serial];
        EXPECT_TRUE(got == expected[request.id.serial]) << "request " << request.id.serial << " depth " << depth;
        if (request.sampling.num_prompt_logprobs >= 0) {
          EXPECT_EQ(static_cast<int>(got.prompt_logprobs.size()), request.num_prompt_tokens - 1);
        }
      }
      const SchedulerStats stats = sim.scheduler->stats();
      num_preemptions += stats.num_preemptions;
      num_hits += stats.prefix_cache_hits;
      num_accepted += stats.num_accepted_draft_tokens;
    }
    if (HasFailure()) return;
  }
  // The cases are only worth something if all of this happened.
  EXPECT_GT(num_preemptions, 100u);
  EXPECT_GT(num_hits, 1000u);
  EXPECT_GT(num_accepted, 1000u);
}

TEST(SchedulerProperty, AbortsAtAnyTimeLeaveNothingBehind) {
  for (uint32_t seed = 1000; seed < 1200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const Case test = random_case(seed);
    Simulation sim(test.options, 1 + static_cast<int>(seed % 2));
    std::mt19937 rng(seed);
    std::set<uint64_t> aborted;
    for (const Request& request : test.requests) {
      ASSERT_TRUE(sim.scheduler->add(request).ok());
      for (uint32_t i = rng() % 4; i > 0; --i) sim.step();
      const uint64_t victim = 1 + rng() % request.id.serial;
      if (rng() % 2 && sim.scheduler->abort({1, victim})) aborted.insert(victim);
    }
    std::map<uint64_t, size_t> at_abort;
    for (uint64_t serial : aborted) at_abort[serial] = sim.outcomes[serial].tokens.size();
    sim.run();
    EXPECT_FALSE(sim.scheduler->has_requests());
    EXPECT_EQ(sim.scheduler->blocks().num_available(), test.options.num_blocks);
    EXPECT_EQ(sim.scheduler->stats().num_running, 0);
    for (const Request& request : test.requests) {
      const uint64_t serial = request.id.serial;
      if (aborted.contains(serial)) {
        EXPECT_EQ(sim.outcomes[serial].tokens.size(), at_abort[serial]) << "an event after the abort";
      } else {
        EXPECT_TRUE(sim.outcomes[serial] == alone(test, request)) << "request " << serial;
      }
    }
    if (HasFailure()) return;
  }
}

// Steps that never end, at any time: the texts are the same, the blocks all come back, and what such a step was to
// write is nowhere found again (the fake executor compares every row).
TEST(SchedulerProperty, AbandonedStepsChangeNoToken) {
  uint64_t num_hits = 0;
  for (uint32_t seed = 3000; seed < 3300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const Case test = random_case(seed);
    Simulation sim(test.options, 1 + static_cast<int>(seed % 2));
    std::mt19937 rng(seed);
    std::set<uint64_t> aborted;
    for (const Request& request : test.requests) {
      ASSERT_TRUE(sim.scheduler->add(request).ok());
      for (uint32_t i = rng() % 6; i > 0; --i) sim.step();
      const uint64_t victim = 1 + rng() % request.id.serial;
      if (rng() % 8 == 0 && sim.scheduler->abort({1, victim})) aborted.insert(victim);
      if (rng() % 3 == 0) sim.abandon();
    }
    sim.run();
    EXPECT_FALSE(sim.scheduler->has_requests());
    EXPECT_EQ(sim.scheduler->blocks().num_available(), test.options.num_blocks);
    for (const Request& request : test.requests) {
      if (aborted.contains(request.id.serial)) continue;
      EXPECT_TRUE(sim.outcomes[request.id.serial] == alone(test, request)) << "request " << request.id.serial;
    }
    num_hits += sim.scheduler->stats().prefix_cache_hits;
    if (HasFailure()) return;
  }
  EXPECT_GT(num_hits, 1000u) << "full blocks stay findable";
}

// A stream of newcomers never keeps an early request from ending: with fcfs each one ends after a bounded number of
// steps, however many come behind it.
TEST(SchedulerProperty, NobodyStarvesBehindNewcomers) {
  for (uint32_t seed = 2000; seed < 2050; ++seed) {
    Case test = random_case(seed);
    test.options.policy = Policy::kFcfs;
    Simulation sim(test.options, 1 + static_cast<int>(seed % 2));
    const Request first = make_request(1, counting_prompt(test.options.max_model_len - 10), 10);
    ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(10, 5), 14)).ok());
    ASSERT_TRUE(sim.scheduler->add(first).ok());
    std::mt19937 rng(seed);
    uint64_t serial = 3;
    int num_steps = 0;
    while (sim.outcomes[1].finish == FinishReason::kNone) {
      ASSERT_TRUE(sim.scheduler->add(make_request(serial++, counting_prompt(1 + rng() % 20, 30), 5)).ok());
      sim.step();
      // The one before it and itself, a token a step at the slowest, twice for async and once more for a preemption.
      ASSERT_LT(++num_steps, 8 * test.options.max_model_len) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace manta::sched
