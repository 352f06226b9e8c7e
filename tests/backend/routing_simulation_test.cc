#include "backend/host/routing_simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "backend/host/routing.h"

namespace manta::backend::host {
namespace {

ModelShape shape(int experts, int top_k) {
  ModelShape s;
  s.n_routed_experts = experts;
  s.num_experts_per_tok = top_k;
  s.n_group = 1;
  s.topk_group = 1;
  s.routed_scaling_factor = 2.5f;
  return s;
}

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};
Choice simulate(RoutingSimulation simulation, const ModelShape& s, int layer, int position, int token) {
  Choice c{std::vector<int32_t>(s.num_experts_per_tok), std::vector<float>(s.num_experts_per_tok)};
  simulate_routing(simulation, s, layer, position, token, c.ids, c.weights);
  return c;
}

class Simulation : public ::testing::TestWithParam<RoutingSimulation> {};

TEST_P(Simulation, ExpertsAreDistinctAndWeightsSumToTheScale) {
  for (const auto& [experts, top_k] : {std::pair{256, 8}, {8, 8}, {9, 3}, {1, 1}}) {
    const ModelShape s = shape(experts, top_k);
    for (int token = 0; token < 200; ++token) {
      const Choice c = simulate(GetParam(), s, 3, token % 17, token);
      EXPECT_EQ(std::set<int32_t>(c.ids.begin(), c.ids.end()).size(), c.ids.size());
      EXPECT_GE(*std::ranges::min_element(c.ids), 0);
      EXPECT_LT(*std::ranges::max_element(c.ids), experts);
      EXPECT_NEAR(std::accumulate(c.weights.begin(), c.weights.end(), 0.0f), 2.5f, 1e-5f);
    }
  }
}

TEST_P(Simulation, DependsOnLayerPositionAndTokenAlone) {
  const ModelShape s = shape(256, 8);
  const Choice c = simulate(GetParam(), s, 1, 2, 3);
  EXPECT_EQ(simulate(GetParam(), s, 1, 2, 3).ids, c.ids);
  EXPECT_NE(simulate(GetParam(), s, 2, 2, 3).ids, c.ids);
  EXPECT_NE(simulate(GetParam(), s, 1, 3, 3).ids, c.ids);
  EXPECT_NE(simulate(GetParam(), s, 1, 2, 4).ids, c.ids);
}

INSTANTIATE_TEST_SUITE_P(Strategies, Simulation,
                         ::testing::Values(RoutingSimulation::kUniformRandom, RoutingSimulation::kNormal));

std::vector<int> tokens_by_expert(RoutingSimulation simulation, const ModelShape& s, int tokens) {
  std::vector<int> count(s.n_routed_experts, 0);
  for (int token = 0; token < tokens; ++token) {
    for (const int32_t id : simulate(simulation, s, 0, token, 5).ids) ++count[id];
  }
  return count;
}

TEST(RoutingSimulation, UniformGivesEveryExpertTheSameShare) {
  const auto count = tokens_by_expert(RoutingSimulation::kUniformRandom, shape(64, 8), 8000);  // 1000 each, sigma 30
  EXPECT_GT(*std::ranges::min_element(count), 850);
  EXPECT_LT(*std::ranges::max_element(count), 1150);
}

TEST(RoutingSimulation, NormalKeepsTheMiddleBusy) {
  const auto count = tokens_by_expert(RoutingSimulation::kNormal, shape(64, 4), 4000);
  EXPECT_GT(count[32], 2 * count[4]);
  EXPECT_GT(count[32], 2 * count[60]);
}

TEST(RoutingSimulation, NamesAreVllms) {
  EXPECT_EQ(*parse_routing_simulation(""), RoutingSimulation::kNone);
  EXPECT_EQ(*parse_routing_simulation("uniform_random"), RoutingSimulation::kUniformRandom);
  EXPECT_EQ(*parse_routing_simulation("normal_routing"), RoutingSimulation::kNormal);
  EXPECT_THAT(parse_routing_simulation("zipf").error().message, ::testing::HasSubstr("zipf: there are uniform_random"));
}

TEST(RoutingSimulation, TheRouterGoesToSlotsOfTheMapAndLeavesPaddingAlone) {
  const ModelShape s = shape(8, 2);
  const auto map = ep::linear_expert_map(2, 8, 8, 2, {});
  Router router(s, RoutingSimulation::kUniformRandom);
  std::vector<int32_t> ids(2);
  std::vector<float> weights(2);
  router.route({1, 7, 5}, nullptr, nullptr, *map, ids, weights);
  const Choice c = simulate(RoutingSimulation::kUniformRandom, s, 1, 7, 5);
  EXPECT_EQ(ids[0], physical_expert(*map, 1, c.ids[0], 7));
  EXPECT_EQ(ids[1], physical_expert(*map, 1, c.ids[1], 7));
  router.route({1, -1, 0}, nullptr, nullptr, *map, ids, weights);
  EXPECT_THAT(ids, ::testing::ElementsAre(-1, -1));
}

}  // namespace
}  // namespace manta::backend::host
