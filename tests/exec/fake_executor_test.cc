#include "exec/fake_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace manta::exec {
namespace {

using ::testing::HasSubstr;

FakeExecutorOptions small() {
  FakeExecutorOptions options;
  options.geometry.num_blocks = 8;
  options.geometry.block_size = 4;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 16;
  options.script = {7, 8, 9};
  return options;
}

sched::StepPlan admit(StepId id, std::vector<TokenId> tokens, int num_prompt_tokens, std::vector<BlockId> blocks) {
  sched::StepPlan plan;
  plan.id = id;
  const int n = static_cast<int>(tokens.size());
  plan.admitted.push_back({0, {1, 1}, std::move(tokens), num_prompt_tokens, 0, std::move(blocks), {}});
  plan.prefills.push_back({0, 0, n, true, {}, {}});
  return plan;
}

sched::StepPlan decode(StepId id, int max_num_tokens = 1, std::vector<BlockId> new_blocks = {}) {
  sched::StepPlan plan;
  plan.id = id;
  plan.decodes.push_back({0, max_num_tokens, 32, std::move(new_blocks), {}});
  return plan;
}

std::vector<TokenId> run(Executor& executor, sched::StepPlan plan) {
  const auto ticket = executor.submit(std::move(plan));
  EXPECT_TRUE(ticket.ok());
  auto result = executor.collect(*ticket, Deadline::max());
  EXPECT_TRUE(result.ok()) << result.error().message;
  return result.ok() && !result->slots.empty() ? result->slots[0].tokens : std::vector<TokenId>{};
}

Error failure(Executor& executor, sched::StepPlan plan) {
  const auto ticket = executor.submit(std::move(plan));
  EXPECT_TRUE(ticket.ok());
  auto result = executor.collect(*ticket, Deadline::max());
  EXPECT_FALSE(result.ok());
  return result.ok() ? Error{} : result.error();
}

TEST(FakeExecutor, FollowsTheScriptFromTheEndOfThePrompt) {
  FakeExecutor executor(small());
  EXPECT_EQ(run(executor, admit(1, {1, 2, 3}, 3, {0, 1})), (std::vector<TokenId>{7}));
  EXPECT_EQ(run(executor, decode(2)), (std::vector<TokenId>{8}));
  EXPECT_EQ(run(executor, decode(3)), (std::vector<TokenId>{9}));
  auto resumed = admit(4, {1, 2, 3, 7}, 3, {2});
  resumed.released = {0};
  EXPECT_EQ(run(executor, resumed), (std::vector<TokenId>{8}));
}

TEST(FakeExecutor, AcceptsDraftsThatAreRight) {
  FakeExecutorOptions options = small();
  options.num_speculative_tokens = 2;
  options.draft_is_right = [](int position) { return position != 6; };
  FakeExecutor executor(options);
  EXPECT_EQ(run(executor, admit(1, {1, 2, 3}, 3, {0, 1, 2})), (std::vector<TokenId>{7}));  // position 3
  EXPECT_EQ(run(executor, decode(2, 3)), (std::vector<TokenId>{8, 9, 7}));                 // 4, 5 drafted right
  EXPECT_EQ(run(executor, decode(3, 3)), (std::vector<TokenId>{8, 9, 7}));
}

TEST(FakeExecutor, ChecksThePlan) {
  EXPECT_THAT(failure(*std::make_unique<FakeExecutor>(small()), decode(1)).message, HasSubstr("slot 0 is free"));
  EXPECT_THAT(failure(*std::make_unique<FakeExecutor>(small()), admit(1, {1, 2, 3, 4, 5}, 5, {0})).message,
              HasSubstr("5 rows in 1 blocks of 4"));
  EXPECT_THAT(failure(*std::make_unique<FakeExecutor>(small()), admit(1, {1}, 1, {8})).message, HasSubstr("block 8"));
  FakeExecutor executor(small());
  run(executor, admit(1, {1, 2, 3}, 3, {0, 1}));
  EXPECT_THAT(failure(executor, admit(2, {1, 2, 3}, 3, {0, 1})).message, HasSubstr("slot 0 is taken"));
}

TEST(FakeExecutor, SeesRowsOfAnotherSequence) {
  FakeExecutor executor(small());
  run(executor, admit(1, {1, 2, 3}, 3, {0}));
  auto other = admit(2, {5, 5, 5, 5, 6}, 5, {0, 1});
  other.released = {0};
  other.admitted[0].num_computed_tokens = 4;
  other.prefills[0] = {0, 4, 1, true, {}, {}};
  EXPECT_THAT(failure(executor, other).message, HasSubstr("position 0 (block 0) is another sequence's"));
}

TEST(FakeExecutor, KeepsToTheMaskOfAGrammar) {
  FakeExecutor executor(small());
  auto plan = admit(1, {1, 2, 3}, 3, {0});
  plan.prefills[0].token_bitmask.assign((4096 + 31) / 32, 0);
  plan.prefills[0].token_bitmask[2] = 1u << 5;
  EXPECT_EQ(run(executor, plan), (std::vector<TokenId>{69}));
}

TEST(FakeExecutor, TakesTwoStepsInFlightAndGivesThemInOrder) {
  FakeExecutorOptions options = small();
  options.step_duration = std::chrono::microseconds(200);
  FakeExecutor executor(options);
  ASSERT_TRUE(executor.submit(admit(1, {1, 2, 3}, 3, {0, 1})).ok());
  ASSERT_TRUE(executor.submit(decode(2)).ok());
  EXPECT_EQ(executor.submit(decode(3)).error().code, ErrorCode::kFailedPrecondition);
  EXPECT_EQ(executor.collect({2}, Deadline::max()).error().code, ErrorCode::kFailedPrecondition);
  EXPECT_EQ(executor.collect({1}, Deadline::max())->slots[0].tokens[0], 7);
  EXPECT_EQ(executor.collect({2}, Deadline::max())->slots[0].tokens[0], 8);
}

TEST(FakeExecutor, FailsAndStallsWhenTold) {
  FakeExecutor executor(small());
  executor.stall_at(1);
  ASSERT_TRUE(executor.submit(admit(1, {1, 2, 3}, 3, {0, 1})).ok());
  EXPECT_EQ(executor.collect({1}, std::chrono::steady_clock::now()).error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_STREQ(executor.where().stage, "forward");
  const uint64_t counter = executor.where().counter;
  std::jthread other([&executor] { executor.unstall(); });
  EXPECT_TRUE(executor.collect({1}, Deadline::max()).ok());
  EXPECT_GT(executor.where().counter, counter);
  executor.fail_at(2, error(ErrorCode::kInternal, "rank 3 layer 7 experts: made up"));
  EXPECT_EQ(failure(executor, decode(2)).message, "rank 3 layer 7 experts: made up");
}

TEST(FakeExecutor, DrainEndsTheWaitForAStuckStep) {
  FakeExecutor executor(small());
  executor.stall_at(1);
  ASSERT_TRUE(executor.submit(admit(1, {1, 2, 3}, 3, {0, 1})).ok());
  std::jthread other([&executor] { EXPECT_TRUE(executor.drain().ok()); });
  EXPECT_EQ(executor.collect({1}, Deadline::max()).error().code, ErrorCode::kAborted);
  EXPECT_EQ(executor.submit(decode(2)).error().code, ErrorCode::kFailedPrecondition);
}

}  // namespace
}  // namespace manta::exec
