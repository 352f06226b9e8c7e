#include "router/policy.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

namespace manta::router {
namespace {

std::vector<TokenId> tokens(TokenId first, size_t n) {
  std::vector<TokenId> out(n);
  std::iota(out.begin(), out.end(), first);
  return out;
}

TEST(PolicyTest, NamesOfOursAndOfRay) {
  EXPECT_EQ(*policy_from_name("round_robin"), Policy::kRoundRobin);
  EXPECT_EQ(*policy_from_name("least_loaded"), Policy::kLeastLoaded);
  EXPECT_EQ(*policy_from_name("prefix_affinity"), Policy::kPrefixAffinity);
  EXPECT_EQ(*policy_from_name("PrefixCacheAffinityRouter"), Policy::kPrefixAffinity);
  EXPECT_EQ(*policy_from_name("ray.serve.llm.request_router:PrefixCacheAffinityRouter"), Policy::kPrefixAffinity);
  EXPECT_EQ(*policy_from_name("ray.serve.llm.request_router.PrefixCacheAffinityRouter"), Policy::kPrefixAffinity);
  const auto unknown = policy_from_name("fastest");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("fastest"), std::string::npos);
  EXPECT_NE(unknown.error().message.find("least_loaded"), std::string::npos);
}

TEST(PolicyTest, RoundRobinVisitsAllInTurn) {
  const std::vector<Candidate> candidates(3, Candidate{.in_flight = 5});
  std::map<size_t, int> visits;
  for (size_t turn = 0; turn < 9; ++turn) ++visits[choose_prefill(Policy::kRoundRobin, candidates, 10, turn)];
  EXPECT_EQ(visits, (std::map<size_t, int>{{0, 3}, {1, 3}, {2, 3}}));
}

TEST(PolicyTest, EqualCandidatesTakeTurns) {
  const std::vector<Candidate> candidates(4);
  std::map<size_t, int> visits;
  for (size_t turn = 0; turn < 8; ++turn) ++visits[choose_decode(Policy::kLeastLoaded, candidates, 10, turn)];
  EXPECT_EQ(visits.size(), 4u) << "a burst at start must not pile up on one rank";
}

TEST(PolicyTest, PrefillGoesWhereTheLeastIsToCompute) {
  const std::vector<Candidate> candidates = {
      {.in_flight = 3000}, {.in_flight = 1000}, {.in_flight = 1500, .cached = 900}};
  EXPECT_EQ(choose_prefill(Policy::kLeastLoaded, candidates, 1000, 0), 1u);
  EXPECT_EQ(choose_prefill(Policy::kPrefixAffinity, candidates, 1000, 0), 2u);
  // Affinity gives way to load: what is saved must be more than what is waited for.
  const std::vector<Candidate> busy = {{.in_flight = 9000, .cached = 900}, {.in_flight = 0}};
  EXPECT_EQ(choose_prefill(Policy::kPrefixAffinity, busy, 1000, 0), 1u);
}

TEST(PolicyTest, DecodeGoesWhereTheCacheIsEmptiest) {
  // By share: 500 of 1000 is fuller than 600 of 4000.
  const std::vector<Candidate> candidates = {{.in_flight = 500, .capacity = 1000, .free = 1000},
                                             {.in_flight = 600, .capacity = 4000, .free = 4000}};
  EXPECT_EQ(choose_decode(Policy::kLeastLoaded, candidates, 100, 0), 1u);
  // What other routers have sent shows in the rank's own figure.
  const std::vector<Candidate> seen = {{.in_flight = 0, .capacity = 1000, .free = 100},
                                       {.in_flight = 200, .capacity = 1000, .free = 1000}};
  EXPECT_EQ(choose_decode(Policy::kLeastLoaded, seen, 100, 0), 1u);
}

TEST(PolicyTest, DecodeAvoidsARankWithoutRoom) {
  const std::vector<Candidate> candidates = {{.in_flight = 900, .capacity = 1000, .free = 1000},
                                             {.in_flight = 9500, .capacity = 10000, .free = 10000}};
  EXPECT_EQ(choose_decode(Policy::kLeastLoaded, candidates, 50, 0), 0u);   // both have room
  EXPECT_EQ(choose_decode(Policy::kLeastLoaded, candidates, 300, 0), 1u);  // only the fuller one has
}

TEST(PrefixTest, HashesCoverWholeBlocksFromTheStart) {
  const auto whole = prefix_hashes(tokens(0, 3 * kBlock + 5), "");
  ASSERT_EQ(whole.size(), 3u);
  const auto shorter = prefix_hashes(tokens(0, 2 * kBlock), "");
  EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), whole.begin()));
  EXPECT_NE(prefix_hashes(tokens(1, 2 * kBlock), "")[1], whole[1]);
  EXPECT_NE(prefix_hashes(tokens(0, 2 * kBlock), "tenant")[0], whole[0]) << "a salt separates";
}

TEST(PrefixTest, MemoryMatchesLeadingBlocksAndForgetsTheOldest) {
  PrefixMemory memory(4);
  const auto a = prefix_hashes(tokens(0, 3 * kBlock), "");
  const auto b = prefix_hashes(tokens(1000, 2 * kBlock), "");
  memory.insert(a);
  EXPECT_EQ(memory.match(a), 3u);
  EXPECT_EQ(memory.match(prefix_hashes(tokens(0, 10 * kBlock), "")), 3u);
  memory.insert(b);
  EXPECT_EQ(memory.num_blocks(), 4u);
  EXPECT_EQ(memory.match(b), 2u);
  EXPECT_EQ(memory.match(a), 2u) << "the end of the older prompt went first";
}

}  // namespace
}  // namespace manta::router
