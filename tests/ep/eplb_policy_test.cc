#include "ep/eplb/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace manta::ep {
namespace {

using ::testing::HasSubstr;

std::vector<double> rank_loads(const std::vector<int64_t>& load, const std::vector<int32_t>& placement, int num_ranks) {
  std::vector<int> replicas(load.size(), 0);
  for (const int32_t e : placement) ++replicas[e];
  std::vector<double> out(num_ranks, 0);
  for (size_t p = 0; p < placement.size(); ++p) {
    out[p * num_ranks / placement.size()] += static_cast<double>(load[placement[p]]) / replicas[placement[p]];
  }
  return out;
}

std::vector<int32_t> linear(int num_logical, int num_physical) {
  std::vector<int32_t> out(num_physical);
  for (int p = 0; p < num_physical; ++p) out[p] = p % num_logical;
  return out;
}

// The example that DeepSeek published with its balancer: two layers of 12 experts, 16 slots, 4 groups, 2 nodes, 8
// ranks.
struct Example {
  std::vector<int64_t> load;
  std::vector<int32_t> published;
};
const Example kExamples[] = {
    {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86}, {5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}},
    {{20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}, {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}}};
const EplbShape kExampleShape{.num_logical = 12, .num_physical = 16, .num_ranks = 8, .num_nodes = 2, .num_groups = 4};

TEST(EplbPolicy, PublishedExampleGivesTheSameReplicasAndNoHeavierRank) {
  for (const auto& [load, published] : kExamples) {
    const auto placed = place_layer(load, linear(12, 16), kExampleShape, EplbPolicy::kHierarchical);
    std::vector<int> ours(12, 0);
    std::vector<int> theirs(12, 0);
    for (int p = 0; p < 16; ++p) ++ours[placed[p]], ++theirs[published[p]];
    EXPECT_EQ(ours, theirs);
    EXPECT_LE(std::ranges::max(rank_loads(load, placed, 8)), std::ranges::max(rank_loads(load, published, 8)) + 1e-9);
    EXPECT_NEAR(predicted_balancedness(load, placed, 8), predicted_balancedness(load, published, 8), 0.02);
  }
}

TEST(EplbPolicy, HierarchicalKeepsEveryGroupOnOneNode) {
  for (const auto& [load, published] : kExamples) {
    const auto placed = place_layer(load, linear(12, 16), kExampleShape, EplbPolicy::kHierarchical);
    std::vector<int> node_of_group(4, -1);
    for (int p = 0; p < 16; ++p) {
      int& node = node_of_group[placed[p] / 3];
      if (node < 0) node = p / 8;
      EXPECT_EQ(node, p / 8) << "slot " << p;
    }
  }
}

std::vector<int64_t> skewed_load(std::mt19937& random, int num_experts) {
  std::lognormal_distribution<double> tokens(4, 1.2);
  std::vector<int64_t> out(num_experts);
  for (auto& t : out) t = static_cast<int64_t>(tokens(random));
  return out;
}

TEST(EplbPolicy, EveryExpertHasASlotAndReplicasAreOnRanksOfTheirOwn) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const int ranks = 1 << (random() % 5);
    const int experts = ranks * (1 + static_cast<int>(random() % 8));
    const int spare = ranks == 1 ? 0 : ranks * static_cast<int>(random() % 3);
    const EplbShape shape{experts, experts + spare, ranks, 1, 1};
    if (spare > experts * (ranks - 1)) continue;
    const auto load = skewed_load(random, experts);
    const auto placed = place_layer(load, linear(experts, experts + spare), shape, EplbPolicy::kGlobal);
    std::vector<int> count(experts, 0);
    for (const int32_t e : placed) ++count.at(e);
    EXPECT_GE(std::ranges::min(count), 1);
    EXPECT_LE(std::ranges::max(count), ranks);
  }
}

TEST(EplbPolicy, BalancesSkewedLoadBetterThanLinearPlacement) {
  std::mt19937 random(11);
  const EplbShape shape{.num_logical = 256, .num_physical = 288, .num_ranks = 32, .num_nodes = 4, .num_groups = 8};
  for (int round = 0; round < 20; ++round) {
    const auto load = skewed_load(random, 256);
    const auto before = linear(256, 288);
    for (const EplbPolicy policy : {EplbPolicy::kGlobal, EplbPolicy::kHierarchical}) {
      const auto after = place_layer(load, before, shape, policy);
      EXPECT_GT(predicted_balancedness(load, after, 32), predicted_balancedness(load, before, 32));
    }
    EXPECT_GT(predicted_balancedness(load, place_layer(load, before, shape, EplbPolicy::kGlobal), 32), 0.9);
  }
}

TEST(EplbPolicy, ExpertsThatStayOnTheirRankKeepTheirSlot) {
  std::mt19937 random(13);
  const EplbShape shape{64, 72, 8, 1, 1};
  const auto load = skewed_load(random, 64);
  const auto once = place_layer(load, linear(64, 72), shape, EplbPolicy::kGlobal);
  EXPECT_EQ(place_layer(load, once, shape, EplbPolicy::kGlobal), once);

  auto shuffled = once;  // the same experts on the same ranks, in another order
  for (int r = 0; r < 8; ++r) std::reverse(shuffled.begin() + r * 9, shuffled.begin() + (r + 1) * 9);
  EXPECT_EQ(place_layer(load, shuffled, shape, EplbPolicy::kGlobal), shuffled);
}

TEST(EplbPolicy, ALayerWithoutTokensStays) {
  const auto before = linear(12, 16);
  EXPECT_EQ(place_layer(std::vector<int64_t>(12, 0), before, kExampleShape, EplbPolicy::kGlobal), before);
}

TEST(EplbPolicy, ChoosesHierarchicalOnlyWhereItCan) {
  EplbShape shape{.num_logical = 256, .num_physical = 288, .num_ranks = 32, .num_nodes = 4, .num_groups = 8};
  EXPECT_EQ(*choose_policy(EplbPolicy::kAuto, shape), EplbPolicy::kHierarchical);
  shape.num_nodes = 1;
  EXPECT_EQ(*choose_policy(EplbPolicy::kAuto, shape), EplbPolicy::kGlobal);
  shape.num_nodes = 3;  // neither the groups nor the ranks divide
  EXPECT_EQ(*choose_policy(EplbPolicy::kAuto, shape), EplbPolicy::kGlobal);
  const auto refused = choose_policy(EplbPolicy::kHierarchical, shape);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("8 expert groups and 32 ranks must divide by 3 nodes"));
  shape = {256, 250, 32, 1, 1};
  EXPECT_FALSE(choose_policy(EplbPolicy::kGlobal, shape).ok());
}

TEST(EplbPolicy, BalancednessIsMeanOverRanksByMaxOverRanks) {
  const std::vector<int64_t> tokens = {30, 10, 0, 0};  // ranks: 40 and 0
  EXPECT_DOUBLE_EQ(balancedness(tokens, 2), 0.5);
  EXPECT_DOUBLE_EQ(balancedness(tokens, 4), 10.0 / 30);
  EXPECT_DOUBLE_EQ(balancedness(std::vector<int64_t>(4, 0), 2), 1);
}

TEST(EplbPlan, SaysWhatItGainsAndMovesOnlyWhenItIsWorthIt) {
  const auto current = linear_expert_map(2, 12, 4, 8, {});
  ASSERT_TRUE(current.ok());
  const auto plan =
      plan_placement({kExamples[0].load, kExamples[1].load}, *current, kExampleShape, EplbPolicy::kGlobal);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_GT(plan->balanced_then, plan->balanced_now);
  EXPECT_GT(plan->num_moves, 0);
  EXPECT_TRUE(worth_moving(*plan, 0));
  EXPECT_TRUE(worth_moving(*plan, 0.01));
  EXPECT_FALSE(worth_moving(*plan, 0.9));

  const auto again =
      plan_placement({kExamples[0].load, kExamples[1].load}, plan->target, kExampleShape, EplbPolicy::kGlobal);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->num_moves, 0);
  EXPECT_FALSE(worth_moving(*again, 0));
}

TEST(EplbPlan, RefusesLoadsThatDoNotFitTheMap) {
  const auto current = linear_expert_map(2, 12, 4, 8, {});
  const auto plan = plan_placement({kExamples[0].load}, *current, kExampleShape, EplbPolicy::kGlobal);
  ASSERT_FALSE(plan.ok());
  EXPECT_THAT(plan.error().message, HasSubstr("layers is 1, the expert map has 2"));
}

}  // namespace
}  // namespace manta::ep
