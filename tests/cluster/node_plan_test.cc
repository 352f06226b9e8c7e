#include "cluster/node_plan.h"

#include <gtest/gtest.h>

namespace manta::cluster {
namespace {

Settings of(int64_t size) {
  Settings s;
  s.data_parallel_size = size;
  return s;
}

void expect_ranks(const NodePlan& plan, int first, int num, int first_served, int num_served) {
  EXPECT_EQ(plan.first_rank, first);
  EXPECT_EQ(plan.num_ranks, num);
  EXPECT_EQ(plan.first_served, first_served);
  EXPECT_EQ(plan.num_served, num_served);
}

TEST(NodePlan, OneNodeKeepsEverythingToItself) {
  const NodePlan plan = plan_node(of(4));
  EXPECT_EQ(plan.balancing, Balancing::kInternal);
  EXPECT_FALSE(plan.several_nodes);
  EXPECT_TRUE(plan.starts_coordinator && plan.has_api);
  EXPECT_EQ(plan.coordinator, "");
  expect_ranks(plan, 0, 4, 0, 4);
}

TEST(NodePlan, TheHeadOfInternalBalancingServesAllRanks) {
  Settings s = of(4);
  s.data_parallel_size_local = 2;
  s.data_parallel_address = "head";
  const NodePlan head = plan_node(s);
  EXPECT_EQ(head.balancing, Balancing::kInternal);
  EXPECT_TRUE(head.starts_coordinator && head.has_api && head.several_nodes);
  EXPECT_EQ(head.coordinator, "tcp:head:29550");
  expect_ranks(head, 0, 2, 0, 4);
  s.data_parallel_size_local = 0;  // the API only
  expect_ranks(plan_node(s), 0, 0, 0, 4);
  s.data_parallel_size_local = 2;
  s.data_parallel_start_rank = 2;
  s.headless = true;
  const NodePlan other = plan_node(s);
  EXPECT_FALSE(other.starts_coordinator || other.has_api);
  EXPECT_TRUE(other.engines_on_tcp);
  EXPECT_EQ(other.coordinator, "tcp:head:29550");
  EXPECT_EQ(other.first_rank, 2);
  EXPECT_EQ(other.num_ranks, 2);
}

TEST(NodePlan, AStartRankWithAnApiIsHybrid) {
  Settings s = of(32);
  s.data_parallel_size_local = 8;
  s.data_parallel_start_rank = 8;
  const NodePlan plan = plan_node(s);
  EXPECT_EQ(plan.balancing, Balancing::kHybrid);
  EXPECT_FALSE(plan.starts_coordinator);
  EXPECT_FALSE(plan.engines_on_tcp);
  expect_ranks(plan, 8, 8, 8, 8);
  s.data_parallel_start_rank = 0;
  EXPECT_TRUE(plan_node(s).starts_coordinator);
}

TEST(NodePlan, HybridOfOneRankIsExternalAndOfAllRanksInternal) {
  Settings s = of(4);
  s.data_parallel_hybrid_lb = true;
  s.data_parallel_size_local = 1;
  EXPECT_EQ(plan_node(s).balancing, Balancing::kExternal);
  s.data_parallel_size_local = 4;
  EXPECT_EQ(plan_node(s).balancing, Balancing::kInternal);
}

TEST(NodePlan, ARankOfItsOwnIsExternal) {
  Settings s = of(4);
  s.data_parallel_rank = 3;
  const NodePlan plan = plan_node(s);
  EXPECT_EQ(plan.balancing, Balancing::kExternal);
  EXPECT_FALSE(plan.starts_coordinator);
  expect_ranks(plan, 3, 1, 3, 1);
}

TEST(NodePlan, AGivenCoordinatorIsJoinedAlsoByTheHead) {
  Settings s = of(2);
  s.data_parallel_rank = 0;
  s.coordinator = "tcp:other:1234";
  const NodePlan plan = plan_node(s);
  EXPECT_FALSE(plan.starts_coordinator);
  EXPECT_EQ(plan.coordinator, "tcp:other:1234");
}

// Children get the settings with the local size filled in and must find the same plan.
TEST(NodePlan, FillingInTheLocalSizeChangesNothing) {
  for (const int rank : {-1, 0, 2}) {
    Settings s = of(4);
    if (rank >= 0) s.data_parallel_rank = rank;
    const NodePlan plan = plan_node(s);
    s.data_parallel_size_local = plan.num_ranks;
    const NodePlan again = plan_node(s);
    EXPECT_EQ(again.balancing, plan.balancing);
    expect_ranks(again, plan.first_rank, plan.num_ranks, plan.first_served, plan.num_served);
  }
}

TEST(NodeAddress, LoopbackIsFoundBothWays) {
  EXPECT_EQ(local_address_towards("127.0.0.1").value(), "127.0.0.1");
  EXPECT_EQ(address_of_interface("lo").value(), "127.0.0.1");
  EXPECT_EQ(interface_of_address("127.0.0.1").value(), "lo");
  EXPECT_FALSE(address_of_interface("no-such-interface").ok());
}

TEST(NodeAddress, BracketsAreForIpv6) {
  EXPECT_EQ(bracketed("10.0.0.1"), "10.0.0.1");
  EXPECT_EQ(bracketed("::1"), "[::1]");
}

}  // namespace
}  // namespace manta::cluster
