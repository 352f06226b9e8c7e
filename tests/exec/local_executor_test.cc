// The real engine on the tiny model. How a request is scheduled changes no token and no bit of a logprob.
#include "exec/local_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "same_tokens.h"

namespace manta::exec {
namespace {

using ::testing::HasSubstr;
using ::testing::Test;

LocalExecutorOptions tiny(const std::string& device) {
  LocalExecutorOptions options;
  options.model = kTinyModel;
  options.device = device;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = 2048;
  options.max_model_len = 4096;
  options.block_size = 16;
  options.num_blocks = 1024;
  return options;
}

std::unique_ptr<Executor> start(const LocalExecutorOptions& options) {
  auto made = make_local_executor(options);
  EXPECT_TRUE(made.ok()) << made.error().message;
  return made.ok() ? std::move(made).value() : nullptr;
}

class SameTokens : public ::testing::TestWithParam<Scale> {
 protected:
  void SetUp() override {
    static std::map<std::string, std::vector<Generated>> expected_on;  // computed once per device
    static const EvalPrompts prompts;
    requests_ = make_requests(prompts.some(GetParam().num_prompts), GetParam().max_tokens);
    for (const auto& request : requests_) longest_ = std::max(longest_, request.num_prompt_tokens);
    std::vector<Generated>& expected = expected_on[GetParam().device];
    if (expected.empty()) expected = Serving(start(tiny(GetParam().device)), false, 1).run(requests_);
    expected_ = expected;
    for (const Generated& g : expected_) ASSERT_FALSE(g.tokens.empty());
  }

  LocalExecutorOptions options(int max_num_seqs) const {
    LocalExecutorOptions o = tiny(GetParam().device);
    o.max_num_seqs = max_num_seqs;
    return o;
  }

  void expect_same(const std::vector<Generated>& got) const { exec::expect_same(got, expected_); }

  std::vector<sched::Request> requests_;
  std::vector<Generated> expected_;  // one at a time, whole prompts, nothing cached, sync, no drafts
  int longest_ = 0;
};

TEST_P(SameTokens, InBatches) {
  for (int batch : {16, 64}) {
    SCOPED_TRACE(batch);
    Serving serving(start(options(batch)), false, 1);
    expect_same(serving.run(requests_));
  }
}

TEST_P(SameTokens, Async) {
  Serving serving(start(options(16)), false, 2);
  expect_same(serving.run(requests_));
}

TEST_P(SameTokens, Chunked) {
  LocalExecutorOptions o = options(8);
  o.max_num_batched_tokens = 23;
  Serving serving(start(o), false, 1);
  expect_same(serving.run(requests_));
  EXPECT_GT(serving.num_steps(), longest_ / 23);
}

TEST_P(SameTokens, FromThePrefixCache) {
  Serving serving(start(options(16)), true, 2);
  expect_same(serving.run(requests_));
  const uint64_t before = serving.stats().prefix_cache_hits;
  expect_same(serving.run(requests_));
  EXPECT_GT(serving.stats().prefix_cache_hits, before);
}

TEST_P(SameTokens, Preempted) {
  LocalExecutorOptions o = options(16);
  o.max_model_len = longest_ + GetParam().max_tokens;
  o.block_size = 4;
  o.num_blocks = (o.max_model_len + 3) / 4 + 8;
  for (int plans_in_flight : {1, 2}) {
    Serving serving(start(o), false, plans_in_flight);
    expect_same(serving.run(requests_));
    EXPECT_GT(serving.stats().num_preemptions, 0u);
  }
}

TEST_P(SameTokens, WithMtp) {
  LocalExecutorOptions o = options(16);
  o.num_speculative_tokens = 1;
  for (int plans_in_flight : {1, 2}) {
    Serving serving(start(o), false, plans_in_flight);
    expect_same(serving.run(requests_));
    EXPECT_GT(serving.stats().num_accepted_draft_tokens, 0u);
    // The few prompts of a sanitizer lane may accept all of theirs.
    if (GetParam().num_prompts > 6) {
      EXPECT_LT(serving.stats().num_accepted_draft_tokens, serving.stats().num_draft_tokens);
    }
  }
}

TEST_P(SameTokens, InTwoMicrobatches) {
  // DBO's order, with room for two microbatches; which steps are split is the group's decision, here: all that can be.
  LocalExecutorOptions o = options(16);
  o.num_microbatches = 2;
  Serving serving(start(o), false, 1);
  serving.num_microbatches = 2;
  expect_same(serving.run(requests_));
}

TEST_P(SameTokens, WithEverythingAtOnce) {
  LocalExecutorOptions o = options(256);
  o.num_speculative_tokens = 1;
  o.max_num_batched_tokens = 264;
  o.max_model_len = longest_ + GetParam().max_tokens;
  o.block_size = 4;
  o.num_blocks = (o.max_model_len + 3) / 4 + 8;
  std::vector<sched::Request> twice;  // neighbours share their prompt
  for (const auto& request : requests_) twice.insert(twice.end(), 2, request);
  Serving serving(start(o), true, 2);
  std::vector<Generated> got = serving.run(twice), half[2];
  for (size_t i = 0; i < got.size(); ++i) half[i % 2].push_back(got[i]);
  expect_same(half[0]);
  expect_same(half[1]);
  EXPECT_GT(serving.stats().num_preemptions, 0u);
  EXPECT_GT(serving.stats().prefix_cache_hits, 0u);
}

// ---- the executor itself -------------------------------------------------------------------------------------------

std::string refusal(const LocalExecutorOptions& options) {
  auto made = make_local_executor(options);
  EXPECT_FALSE(made.ok());
  return made.ok() ? "" : made.error().message;
}

TEST(LocalExecutor, RefusesWhatCannotWorkWithTheNumbers) {
  LocalExecutorOptions options = tiny("cpu");
  options.max_model_len = 5000;
  EXPECT_THAT(refusal(options), HasSubstr("max_model_len 5000: must be in [2, 4096]"));
  options = tiny("cpu");
  options.num_blocks = 3;
  EXPECT_THAT(refusal(options), HasSubstr("cannot hold one request of max_model_len 4096, which needs 256 blocks"));
  options = tiny("cpu");
  options.num_blocks = 0;
  options.cache_bytes = size_t{1} << 50;
  EXPECT_THAT(refusal(options), HasSubstr("available: lower --kv-cache-memory-bytes"));
  options = tiny("gpu");
  EXPECT_THAT(refusal(options), HasSubstr("backend 'gpu'"));
  options = tiny("cpu");
  options.model = "models/nowhere";
  EXPECT_THAT(refusal(options), HasSubstr("models/nowhere"));
  options = tiny("cpu");
  options.load_format = "pickle";
  EXPECT_THAT(refusal(options), HasSubstr("load_format pickle"));
  options = tiny("cpu");
  options.num_speculative_tokens = 2;
  EXPECT_THAT(refusal(options), HasSubstr("num_speculative_tokens 2"));
}

TEST(LocalExecutor, SizesTheCacheAndAccountsForMemory) {
  LocalExecutorOptions options = tiny("cpu");
  options.num_blocks = 0;
  options.max_model_len = 100;
  options.max_num_seqs = 3;
  EXPECT_EQ(start(options)->info().geometry.num_blocks, 3 * 7);  // what a full engine can use
  options.cache_bytes = 16 * start(options)->info().geometry.bytes_per_block() + 1;
  const auto executor = start(options);
  EXPECT_EQ(executor->info().geometry.num_blocks, 16);
  size_t cache = 0, weights = 0;
  for (const auto& line : executor->info().memory) {
    EXPECT_GT(line.bytes, 0u) << line.name;
    if (line.name == "cache") cache = line.bytes;
    if (line.name == "weights") weights = line.bytes;
  }
  EXPECT_EQ(cache, executor->info().geometry.total_bytes());
  EXPECT_GT(weights, size_t{20} << 20);
  EXPECT_EQ(executor->info().vocab_size, 4096);
}

TEST(LocalExecutor, DummyWeightsRunToo) {
  LocalExecutorOptions options = tiny("cpu");
  options.load_format = "dummy";
  Serving serving(start(options), true, 2);
  sched::Request request;
  request.tokens = {5, 6, 7};
  request.num_prompt_tokens = 3;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 4;
  EXPECT_EQ(serving.run({request})[0].tokens.size(), 4u);
}

TEST(LocalExecutor, PromptLogprobsOfEveryChunk) {
  LocalExecutorOptions options = tiny("cpu");
  options.max_num_batched_tokens = 7;
  sched::Request request;
  for (int i = 0; i < 30; ++i) request.tokens.push_back(100 + i);
  request.num_prompt_tokens = 30;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 2;
  request.sampling.num_prompt_logprobs = 2;
  Serving chunked(start(options), true, 2), whole(start(tiny("cpu")), true, 1);
  const Generated a = chunked.run({request})[0], b = whole.run({request})[0];
  ASSERT_EQ(a.prompt_logprobs.size(), 29u);
  for (int i = 1; i < 30; ++i) EXPECT_EQ(a.prompt_logprobs[i - 1].token_ids[0], request.tokens[i]);
  EXPECT_EQ(bits(a.prompt_logprobs), bits(b.prompt_logprobs));
}

TEST(LocalExecutor, AFailedStepNamesItsPlaceAndNothingRunsAfterIt) {
  auto executor = start(tiny("cpu"));
  sched::StepPlan bad, good;
  bad.id = 1;
  bad.decodes.push_back({0, 1, 10, {}, {}});  // the slot holds no request
  good.id = 2;
  ASSERT_TRUE(executor->submit(bad).ok());
  ASSERT_TRUE(executor->submit(good).ok());
  EXPECT_EQ(executor->submit(good).error().code, ErrorCode::kFailedPrecondition);  // two are in flight
  EXPECT_THAT(executor->collect({1}, Deadline::max()).error().message,
              HasSubstr("rank 0, step 1, layer -1, stage plan: slot 0 has rows but holds no request"));
  EXPECT_THAT(executor->collect({2}, Deadline::max()).error().message, HasSubstr("an earlier step failed"));
}

TEST(LocalExecutor, StandsStillBetweenStepsAndTakesNoneAfterDrain) {
  auto executor = start(tiny("cpu"));
  EXPECT_STREQ(executor->where().stage, "idle");
  const uint64_t counter = executor->where().counter;
  sched::StepPlan plan;
  plan.id = 1;
  plan.admitted.push_back({0, {1, 1}, {5, 6, 7}, 3, 0, {0}, {}});
  plan.prefills.push_back({0, 0, 3, true, {}, {}});
  ASSERT_TRUE(executor->submit(plan).ok());
  ASSERT_TRUE(executor->drain().ok());
  EXPECT_EQ(executor->collect({1}, Deadline::max())->slots.size(), 1u);  // what was in flight is finished
  EXPECT_GT(executor->where().counter, counter + 10);
  EXPECT_EQ(executor->where().step, 1u);
  EXPECT_EQ(executor->submit({}).error().code, ErrorCode::kFailedPrecondition);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
const Scale kCpu = {"cpu", 12, 12}, kRef = {"ref", 6, 8};  // ten times slower
#else
const Scale kCpu = {"cpu", all_tests() ? 600 : 40, 24}, kRef = {"ref", 12, 12};
#endif

INSTANTIATE_TEST_SUITE_P(Devices, SameTokens, ::testing::Values(kCpu, kRef),
                         [](const auto& test) { return test.param.device; });

}  // namespace
}  // namespace manta::exec
