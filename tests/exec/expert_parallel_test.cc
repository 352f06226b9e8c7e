// Where the experts live changes no token and no bit of a logprob: one rank with all of them against groups of ranks.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "group_serving.h"
#include "same_tokens.h"

namespace manta::exec {
namespace {

LocalExecutorOptions tiny(const std::string& device) {
  LocalExecutorOptions options;
  options.model = kTinyModel;
  options.device = device;
  options.backend.num_threads = 1;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 512;
  options.max_model_len = 2048;
  options.block_size = 16;
  options.num_blocks = 1024;
  return options;
}

class ExpertParallel : public ::testing::TestWithParam<Scale> {
 protected:
  void SetUp() override {
    static std::map<std::string, std::vector<Generated>> expected_on;  // computed once per device
    static const EvalPrompts prompts;
    requests_ = make_requests(prompts.some(GetParam().num_prompts), GetParam().max_tokens);
    std::vector<Generated>& expected = expected_on[GetParam().device];
    if (expected.empty()) expected = GroupServing(tiny(GetParam().device), 1, false, 1).run(requests_);
    expected_ = expected;
    for (const Generated& g : expected_) ASSERT_FALSE(g.tokens.empty());
  }

  LocalExecutorOptions options() const { return tiny(GetParam().device); }

  void expect_same(GroupServing& group) {
    exec::expect_same(group.run(requests_), expected_);
    EXPECT_GT(group.traffic().rows, 0u) << "no row crossed ranks";
    EXPECT_GE(group.traffic().bytes, group.traffic().rows * 256 * 2) << "hidden_size 256, two bytes or more each";
  }

  std::vector<sched::Request> requests_;
  std::vector<Generated> expected_;  // one rank with all experts
};

TEST_P(ExpertParallel, TwoRanks) {
  GroupServing group(options(), 2, false, 1);
  expect_same(group);
}

TEST_P(ExpertParallel, FourRanksAsync) {
  GroupServing group(options(), 4, true, 2);
  expect_same(group);
  if (requests_.size() > 16) {
    EXPECT_GT(group.num_dummy_steps(), 0) << "the ranks should not end together";
  }
}

TEST_P(ExpertParallel, RedundantExperts) {
  LocalExecutorOptions o = options();
  o.num_redundant_experts = 4;
  GroupServing group(o, 4, true, 2);
  expect_same(group);
}

TEST_P(ExpertParallel, MaskedLayoutOverTcp) {
  LocalExecutorOptions o = options();
  o.transport.kind = "tcp";
  o.transport.layout = ep::ExpertLayout::kMasked;
  GroupServing group(o, 2, false, 2);
  expect_same(group);
}

TEST_P(ExpertParallel, ChunkedPromptsInRounds) {
  LocalExecutorOptions o = options();
  o.max_num_batched_tokens = 48;
  o.max_tokens_per_round = 7;
  GroupServing group(o, 4, false, 2);
  expect_same(group);
}

TEST_P(ExpertParallel, WithDrafts) {
  LocalExecutorOptions o = options();
  o.num_speculative_tokens = 1;
  GroupServing group(o, 4, true, 2);
  expect_same(group);
}

// Every step in two microbatches, of whatever size: the halves may be empty on some ranks.
TEST_P(ExpertParallel, InTwoMicrobatches) {
  LocalExecutorOptions o = options();
  o.num_microbatches = 2;
  o.num_speculative_tokens = 1;
  GroupServing group(o, 4, true, 2);
  group.num_microbatches = 2;
  expect_same(group);
  EXPECT_GT(group.num_split_steps(), 0);
}

// A group that falls apart between two runs and is formed again keeps its weights and finds its cached blocks.
TEST_P(ExpertParallel, ANewEpoch) {
  GroupServing group(options(), 2, true, 2);
  expect_same(group);
  for (int rank = 0; rank < group.size(); ++rank) group.scheduler(rank).abandon_steps();
  group.form(2);
  const uint64_t hits = group.scheduler(0).stats().prefix_cache_hits;
  expect_same(group);
  EXPECT_GT(group.scheduler(0).stats().prefix_cache_hits, hits);
}

INSTANTIATE_TEST_SUITE_P(Devices, ExpertParallel, ::testing::Values(Scale{"cpu", 24, 24}, Scale{"ref", 6, 6}),
                         [](const auto& test) { return test.param.device; });

// All prompts of tests/golden/eval.jsonl, greedy, as long as they like. Without MANTA_ALL_TESTS every twentieth.
TEST(EvalOverRanks, NoTokenDiffers) {
  const bool all = std::getenv("MANTA_ALL_TESTS") != nullptr;
  const EvalPrompts eval;
  auto requests = make_requests(eval.some(all ? 600 : 30), 150);
  for (sched::Request& request : requests) {  // greedy, and no more than tokens
    request.sampling.temperature = 0.0f;
    request.sampling.frequency_penalty = 0.0f;
    request.sampling.num_logprobs = -1;
  }
  LocalExecutorOptions o = tiny("cpu");
  o.max_model_len = 4096;
  o.num_speculative_tokens = 1;
  const auto expected = GroupServing(o, 1, true, 2).run(requests);
  struct Case {
    int num_ranks, num_redundant_experts, num_microbatches;
  };
  size_t num_tokens = 0;
  for (const auto& g : expected) num_tokens += g.tokens.size();
  for (const Case c : {Case{2, 0, 1}, Case{4, 0, 1}, Case{4, 4, 1}, Case{4, 0, 2}}) {
    LocalExecutorOptions of_case = o;
    of_case.num_redundant_experts = c.num_redundant_experts;
    of_case.num_microbatches = c.num_microbatches;
    GroupServing group(of_case, c.num_ranks, true, 2);
    group.num_microbatches = c.num_microbatches;
    const auto got = group.run(requests);
    ASSERT_EQ(got.size(), expected.size());
    size_t num_differing = 0;
    for (size_t i = 0; i < got.size(); ++i) num_differing += got[i].tokens != expected[i].tokens;
    EXPECT_EQ(num_differing, 0u) << "DP" << c.num_ranks << "/EP" << c.num_ranks << ", " << c.num_redundant_experts
                                 << " redundant experts, " << c.num_microbatches << " microbatches";
    EXPECT_GT(group.traffic().rows, num_tokens);
    std::printf("DP%d/EP%d, %d redundant, %d microbatches: %zu of %zu prompts differ, %zu tokens, %llu rows crossed\n",
                c.num_ranks, c.num_ranks, c.num_redundant_experts, c.num_microbatches, num_differing, got.size(),
                num_tokens, static_cast<unsigned long long>(group.traffic().rows));
  }
}

}  // namespace
}  // namespace manta::exec
