#include "sched/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "simulation.h"

namespace manta::sched {
namespace {

using ::testing::HasSubstr;

SchedulerOptions small() {
  SchedulerOptions options;
  options.num_blocks = 64;
  options.block_size = 4;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 16;
  options.max_model_len = 128;
  return options;
}

TEST(Scheduler, RunsARequestToItsEnd) {
  Simulation sim(small());
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(5), 7)).ok());
  sim.run();
  EXPECT_EQ(sim.outcomes[1].tokens.size(), 7u);
  EXPECT_EQ(sim.outcomes[1].finish, FinishReason::kLength);
  EXPECT_EQ(sim.num_steps, 7);
  EXPECT_FALSE(sim.scheduler->has_requests());
  EXPECT_EQ(sim.scheduler->blocks().counts().used, 0);
}

TEST(Scheduler, AsyncGivesTheSameTokensInTheSameNumberOfSteps) {
  Simulation sim(small(), 2);
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(5), 7)).ok());
  sim.run();
  EXPECT_EQ(sim.outcomes[1].tokens.size(), 7u);
  EXPECT_EQ(sim.num_steps, 7);  // the bound on its tokens is known ahead, so no step is for nothing
}

TEST(Scheduler, StopsAtEndAndStopTokensAfterMinTokens) {
  Simulation free_run(small());
  ASSERT_TRUE(free_run.scheduler->add(make_request(1, counting_prompt(5), 20)).ok());
  free_run.run();
  const auto text = free_run.outcomes[1].tokens;
  for (int depth : {1, 2}) {
    for (bool end_token : {false, true}) {
      Simulation sim(small(), depth);
      Request request = make_request(1, counting_prompt(5), 20);
      (end_token ? request.sampling.eos_token_ids : request.sampling.stop_token_ids) = {text[6]};
      const auto first = std::ranges::find(text, text[6]) - text.begin();
      ASSERT_TRUE(sim.scheduler->add(request).ok());
      request.id.serial = 2;
      request.sampling.min_tokens = static_cast<int>(first) + 2;
      ASSERT_TRUE(sim.scheduler->add(request).ok());
      request.id.serial = 3;
      request.sampling.min_tokens = 0;
      request.sampling.ignore_eos = true;
      ASSERT_TRUE(sim.scheduler->add(request).ok());
      sim.run();
      EXPECT_EQ(sim.outcomes[1].finish, FinishReason::kStop);
      EXPECT_EQ(sim.outcomes[1].stop_token, text[6]);
      EXPECT_EQ(static_cast<ptrdiff_t>(sim.outcomes[1].tokens.size()), first + 1);
      EXPECT_GT(sim.outcomes[2].tokens.size(), sim.outcomes[1].tokens.size());
      EXPECT_EQ(sim.outcomes[3].tokens.size(), end_token ? 20u : sim.outcomes[1].tokens.size());
      EXPECT_EQ(sim.scheduler->blocks().counts().used, 0);
    }
  }
}

TEST(Scheduler, ChunksALongPromptAndKeepsStreamsGoing) {
  Simulation sim(small());
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(3), 20)).ok());
  sim.step();
  ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(40, 7), 2)).ok());
  std::vector<int> pieces;
  sim.on_plan = [&](const StepPlan& plan) {
    EXPECT_LE(plan.max_num_tokens(), 16);
    for (const auto& prefill : plan.prefills) pieces.push_back(prefill.num_scheduled_tokens);
    EXPECT_GE(plan.decodes.size(), 1u) << "the stream goes on";
  };
  sim.run();
  EXPECT_EQ(pieces, (std::vector<int>{15, 15, 10}));
}

TEST(Scheduler, LongPrefillTokenThresholdLeavesRoomForShortPrompts) {
  SchedulerOptions options = small();
  options.long_prefill_token_threshold = 6;
  Simulation sim(options);
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(40), 1)).ok());
  ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(5, 9), 1)).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  ASSERT_EQ(plan->prefills.size(), 2u);
  EXPECT_EQ(plan->prefills[0].num_scheduled_tokens, 6);
  EXPECT_EQ(plan->prefills[1].num_scheduled_tokens, 5);
}

TEST(Scheduler, WithoutChunksAPromptIsPlannedWhole) {
  SchedulerOptions options = small();
  options.enable_chunked_prefill = false;
  options.max_num_batched_tokens = 128;
  Simulation sim(options);
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(100), 1)).ok());
  ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(100, 9), 1)).ok());
  sim.on_plan = [](const StepPlan& plan) {
    ASSERT_EQ(plan.prefills.size(), 1u);
    EXPECT_EQ(plan.prefills[0].num_scheduled_tokens, 100);
  };
  sim.run();
  EXPECT_EQ(sim.num_steps, 2);
}

TEST(Scheduler, FindsCachedPrefixesAndComputesTheLastTokenAgain) {
  Simulation sim(small());
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(12), 1)).ok());
  sim.run();
  ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(12), 1)).ok());
  sim.run();
  EXPECT_EQ(sim.outcomes[2].num_cached_tokens, 8);  // all three blocks are cached, the last token is needed
  EXPECT_TRUE(sim.outcomes[1] == sim.outcomes[2]);
  ASSERT_TRUE(sim.scheduler->add(make_request(3, counting_prompt(14), 1)).ok());
  sim.run();
  EXPECT_EQ(sim.outcomes[3].num_cached_tokens, 12);
  EXPECT_EQ(sim.scheduler->stats().prefix_cache_queries, 12u + 12 + 14);
  EXPECT_EQ(sim.scheduler->stats().prefix_cache_hits, 8u + 12);

  Request salted = make_request(4, counting_prompt(14), 1);
  salted.cache_salt = "another tenant";
  ASSERT_TRUE(sim.scheduler->add(salted).ok());
  sim.run();
  EXPECT_EQ(sim.outcomes[4].num_cached_tokens, 0);
}

TEST(Scheduler, GeneratedTokensAreFoundToo) {
  for (int depth : {1, 2}) {
    Simulation sim(small(), depth);
    ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(6), 9)).ok());
    sim.run();
    auto turn = counting_prompt(6);
    turn.insert(turn.end(), sim.outcomes[1].tokens.begin(), sim.outcomes[1].tokens.end());
    turn.push_back(3);
    ASSERT_TRUE(sim.scheduler->add(make_request(2, turn, 4)).ok());
    sim.run();
    EXPECT_EQ(sim.outcomes[2].num_cached_tokens, 12);  // 14 rows were written, in whole blocks 12
  }
}

TEST(Scheduler, RequestsOfOneStepShareTheirPrompt) {
  SchedulerOptions options = small();
  options.max_num_batched_tokens = 64;
  Simulation sim(options);
  for (uint64_t i = 1; i <= 3; ++i) ASSERT_TRUE(sim.scheduler->add(make_request(i, counting_prompt(17), 3)).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  ASSERT_EQ(plan->admitted.size(), 3u);
  EXPECT_EQ(plan->admitted[1].num_computed_tokens, 16);
  EXPECT_EQ(plan->prefills[1].num_scheduled_tokens, 1);
}

TEST(Scheduler, PromptLogprobsNeedEveryRowAndComeOnce) {
  for (int depth : {1, 2}) {
    Simulation sim(small(), depth);
    ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(40), 1)).ok());
    sim.run();
    Request request = make_request(2, counting_prompt(40), 3);
    request.sampling.num_prompt_logprobs = 0;
    ASSERT_TRUE(sim.scheduler->add(request).ok());
    sim.run();
    EXPECT_EQ(sim.outcomes[2].num_cached_tokens, 0);
    ASSERT_EQ(sim.outcomes[2].prompt_logprobs.size(), 39u);
    for (int i = 1; i < 40; ++i) EXPECT_EQ(sim.outcomes[2].prompt_logprobs[i - 1].token_ids[0], request.tokens[i]);
  }
}

TEST(Scheduler, PreemptsTheYoungestAndGoesOnWithItsText) {
  Simulation roomy(small());
  SchedulerOptions options = small();
  options.num_blocks = 8;  // 32 rows; two requests of 6 + 20 tokens need 14 blocks
  for (int depth : {1, 2}) {
    Simulation sim(options, depth);
    for (uint64_t i = 1; i <= 2; ++i) {
      const Request request = make_request(i, counting_prompt(6, static_cast<int>(i)), 20);
      if (depth == 1) {
        ASSERT_TRUE(roomy.scheduler->add(request).ok());
      }
      ASSERT_TRUE(sim.scheduler->add(request).ok());
    }
    roomy.run();
    std::vector<uint64_t> preempted;
    sim.on_plan = [&](const StepPlan& plan) {
      for (const auto& admitted : plan.admitted) {
        if (admitted.tokens.size() > 6) preempted.push_back(admitted.id.serial);
      }
    };
    sim.run();
    EXPECT_GE(sim.scheduler->stats().num_preemptions, 1u);
    ASSERT_FALSE(preempted.empty());
    EXPECT_EQ(preempted[0], 2u);
    EXPECT_TRUE(sim.outcomes[1] == roomy.outcomes[1]);
    EXPECT_TRUE(sim.outcomes[2] == roomy.outcomes[2]);
    EXPECT_EQ(sim.scheduler->blocks().num_available(), 8);
  }
}

TEST(Scheduler, PriorityDecidesWhoGoesFirstAndWhoGivesWay) {
  SchedulerOptions options = small();
  options.policy = Policy::kPriority;
  options.max_num_seqs = 1;
  Simulation sim(options);
  std::vector<uint64_t> order;
  sim.on_plan = [&](const StepPlan& plan) {
    for (const auto& admitted : plan.admitted) order.push_back(admitted.id.serial);
  };
  for (uint64_t i = 1; i <= 4; ++i) {
    Request request = make_request(i, counting_prompt(5), 2);
    request.priority = i == 3 ? -1 : 1;
    ASSERT_TRUE(sim.scheduler->add(request).ok());
  }
  sim.run();
  EXPECT_EQ(order, (std::vector<uint64_t>{3, 1, 2, 4}));
}

TEST(Scheduler, AbortGivesBlocksAndSlotToTheNextPlan) {
  SchedulerOptions options = small();
  options.num_blocks = 4;
  options.max_num_seqs = 1;
  Simulation sim(options, 2);
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(9), 8)).ok());
  sim.step();
  EXPECT_EQ(sim.scheduler->num_in_flight(), 1);
  ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(9, 20), 8)).ok());
  EXPECT_TRUE(sim.scheduler->abort({1, 1}));
  EXPECT_FALSE(sim.scheduler->abort({1, 1}));
  EXPECT_EQ(sim.scheduler->blocks().counts().used, 0);
  sim.run();
  EXPECT_EQ(sim.outcomes.count(1), 0u);
  EXPECT_EQ(sim.outcomes[2].tokens.size(), 8u);
}

TEST(Scheduler, RefusesWhatCanNeverRunWithTheNumbers) {
  SchedulerOptions options = small();
  options.num_blocks = 8;
  Simulation sim(options);
  auto refused = [&](Request request) {
    const Status status = sim.scheduler->add(std::move(request));
    EXPECT_FALSE(status.ok());
    if (status.ok()) return std::string();
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    return status.error().message;
  };
  EXPECT_THAT(refused(make_request(1, {}, 5)), HasSubstr("at least one token"));
  EXPECT_THAT(refused(make_request(1, counting_prompt(128), 5)), HasSubstr("max_model_len is 128"));
  EXPECT_THAT(refused(make_request(1, counting_prompt(20), 14)), HasSubstr("need 9 cache blocks of 4 tokens"));
  EXPECT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(20), 13)).ok());  // 32 rows and a last token
  EXPECT_THAT(refused(make_request(1, counting_prompt(20), 1)), HasSubstr("is here already"));
  sim.run();
  EXPECT_EQ(sim.outcomes[1].tokens.size(), 13u);
}

TEST(Scheduler, RefusesContradictingOptions) {
  SchedulerOptions options = small();
  options.max_num_seqs = 17;
  EXPECT_THAT(Scheduler::make(options).error().message, HasSubstr("max_num_batched_tokens 16: must be at least"));
  options = small();
  options.enable_chunked_prefill = false;
  EXPECT_THAT(Scheduler::make(options).error().message, HasSubstr("max_model_len 128 without chunked prefill"));
  options = small();
  options.watermark = 1.0;
  EXPECT_FALSE(Scheduler::make(options).ok());
}

TEST(Scheduler, AResubmittedRequestContinues) {
  Simulation whole(small()), rest(small());
  ASSERT_TRUE(whole.scheduler->add(make_request(1, counting_prompt(6), 12)).ok());
  whole.run();
  Request request = make_request(1, counting_prompt(6), 12);
  const auto& text = whole.outcomes[1].tokens;
  request.tokens.insert(request.tokens.end(), text.begin(), text.begin() + 5);
  ASSERT_TRUE(rest.scheduler->add(request).ok());
  rest.run();
  EXPECT_EQ(rest.outcomes[1].tokens, std::vector<TokenId>(text.begin() + 5, text.end()));
}

TEST(Scheduler, AnIdleRankKeepsTheOthersCompany) {
  Simulation sim(small());
  EXPECT_FALSE(sim.scheduler->plan({}));
  DpAgreement dp;
  dp.epoch = {7};
  dp.dummy = true;
  auto plan = sim.scheduler->plan(dp);
  ASSERT_TRUE(plan);
  EXPECT_TRUE(plan->dp.dummy);
  EXPECT_EQ(plan->epoch, Epoch{7});
  EXPECT_TRUE(sim.scheduler->collect(plan->id, {}).ok());
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(6), 1)).ok());
  EXPECT_FALSE(sim.scheduler->plan(dp)->dp.dummy);
}

TEST(Scheduler, AResultThatDoesNotFitThePlanIsAnError) {
  Simulation sim(small());
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(6), 4)).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  EXPECT_FALSE(sim.scheduler->collect(plan->id + 1, {}).ok());
  auto events = sim.scheduler->collect(plan->id, {});
  ASSERT_FALSE(events.ok());
  EXPECT_THAT(events.error().message, HasSubstr("gave 0 tokens, expected 1 to 1"));
}

}  // namespace
}  // namespace manta::sched
