#include "backend/host/routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace manta::backend::host {
namespace {

using ::testing::ElementsAre;

ModelShape router_shape(int experts, int top_k, int groups, int topk_groups) {
  ModelShape s;
  s.n_routed_experts = experts;
  s.num_experts_per_tok = top_k;
  s.n_group = groups;
  s.topk_group = topk_groups;
  s.routed_scaling_factor = 2.5f;
  return s;
}

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice choose(const ModelShape& s, const std::vector<float>& logits, const std::vector<float>& bias = {}) {
  Router router(s);
  Choice c;
  c.ids.resize(s.num_experts_per_tok);
  c.weights.resize(s.num_experts_per_tok);
  router.choose(logits.data(), bias.empty() ? nullptr : bias.data(), c.ids, c.weights);
  return c;
}

// The definition by sorting, in another style and in double.
std::vector<int32_t> by_sorting(const ModelShape& s, const std::vector<float>& logits, const std::vector<float>& bias) {
  const int n = s.n_routed_experts, size = n / s.n_group;
  std::vector<double> score(n);
  for (int e = 0; e < n; ++e) score[e] = 1 / (1 + std::exp(-double{logits[e]})) + bias[e];
  const auto ranked = [](const std::vector<double>& v) {
    std::vector<int32_t> order(v.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return v[a] > v[b]; });
    return order;
  };
  std::vector<double> groups;
  for (int g = 0; g < s.n_group; ++g) {
    std::vector<double> v(score.begin() + g * size, score.begin() + (g + 1) * size);
    std::sort(v.rbegin(), v.rend());
    groups.push_back(v[0] + v[1]);
  }
  auto best_groups = ranked(groups);
  best_groups.resize(s.topk_group);
  for (int e = 0; e < n; ++e) {
    if (std::find(best_groups.begin(), best_groups.end(), e / size) == best_groups.end()) score[e] = -1e9;
  }
  auto order = ranked(score);
  order.resize(s.num_experts_per_tok);
  return order;
}

TEST(Router, AgreesWithTheDefinition) {
  std::mt19937 rng(2);
  std::normal_distribution<float> normal;
  for (auto [experts, top_k, groups, topk_groups] :
       {std::array{32, 8, 8, 4}, std::array{256, 8, 8, 4}, std::array{16, 1, 4, 1}, std::array{6, 6, 1, 1}}) {
    const ModelShape s = router_shape(experts, top_k, groups, topk_groups);
    for (int i = 0; i < 200; ++i) {
      std::vector<float> logits(experts), bias(experts);
      for (float& x : logits) x = 2 * normal(rng);
      for (float& x : bias) x = 0.3f * normal(rng);
      EXPECT_EQ(choose(s, logits, bias).ids, by_sorting(s, logits, bias));
    }
  }
}

TEST(Router, EqualScoresChooseTheLowerId) {
  const ModelShape s = router_shape(8, 3, 4, 2);
  EXPECT_THAT(choose(s, std::vector<float>(8, 0.5f)).ids, ElementsAre(0, 1, 2));
  std::vector<float> logits(8, 0.0f);
  logits[7] = 1.0f;
  EXPECT_THAT(choose(s, logits).ids, ElementsAre(7, 0, 1));
}

TEST(Router, BiasChoosesButDoesNotWeigh) {
  const ModelShape s = router_shape(4, 2, 1, 1);
  const std::vector<float> logits = {0, 1, 2, 3}, bias = {9, 0, 0, 5};
  const Choice c = choose(s, logits, bias);
  EXPECT_THAT(c.ids, ElementsAre(0, 3));
  const float a = 0.5f, b = 1 / (1 + std::exp(-3.0f));
  EXPECT_NEAR(c.weights[0], 2.5f * a / (a + b), 1e-6);
  EXPECT_NEAR(c.weights[1], 2.5f * b / (a + b), 1e-6);
}

// A group that lost stays out even when every score in the winning group is below 0.
TEST(Router, NegativeScoresStayInsideTheirGroup) {
  const ModelShape s = router_shape(4, 2, 2, 1);
  EXPECT_THAT(choose(s, {0, 0, 0, 0}, {-2, -2, -1, -9}).ids, ElementsAre(0, 1));
}

TEST(Router, SoftmaxOfV2) {
  ModelShape s = router_shape(4, 2, 2, 1);
  s.scoring_func = ScoringFunc::kSoftmax;
  s.group_limited_by_top2_sum = false;  // a group counts its best expert
  s.norm_topk_prob = false;
  s.routed_scaling_factor = 16.0f;
  const std::vector<float> logits = {std::log(.3f), std::log(.3f), std::log(.39f), std::log(.01f)};
  const Choice c = choose(s, logits);
  EXPECT_THAT(c.ids, ElementsAre(2, 3));
  EXPECT_NEAR(c.weights[0], 16 * .39f, 1e-5);
  EXPECT_NEAR(c.weights[1], 16 * .01f, 1e-5);
  s.group_limited_by_top2_sum = true;
  EXPECT_THAT(choose(s, logits).ids, ElementsAre(0, 1));
}

TEST(Router, NotFiniteLogitsGiveValidIds) {
  const ModelShape s = router_shape(8, 3, 4, 2);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (int32_t id : choose(s, std::vector<float>(8, bad)).ids) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, 8);
    }
  }
}

TEST(PhysicalExpert, ReplicaIsAFunctionOfThePosition) {
  const auto map = *ep::linear_expert_map(2, 4, 2, 2, {});  // experts 0 and 1 have a second slot
  EXPECT_EQ(physical_expert(map, 1, 0, 0), 0);
  EXPECT_EQ(physical_expert(map, 1, 0, 1), 4);
  EXPECT_EQ(physical_expert(map, 1, 1, 7), 5);
  EXPECT_EQ(physical_expert(map, 1, 3, 7), 3);
}

}  // namespace
}  // namespace manta::backend::host
