#include "engine/engine_load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace manta::engine {
namespace {

Welcome welcome(int num_blocks = 1000, int max_num_seqs = 64) {
  Welcome w;
  w.block_size = 16;
  w.num_blocks = num_blocks;
  w.max_num_seqs = max_num_seqs;
  return w;
}

Load load(int num_blocks, int num_free_blocks, int num_running, uint64_t num_steps) {
  Load l;
  l.num_blocks = num_blocks;
  l.num_free_blocks = num_free_blocks;
  l.num_running = num_running;
  l.num_steps = num_steps;
  return l;
}

EngineLoad engine(int num_blocks = 1000, int max_num_seqs = 64) {
  EngineLoad e;
  e.welcomed(welcome(num_blocks, max_num_seqs));
  return e;
}

TEST(EngineLoad, OwnRequestsCountAtOnceAndExactly) {
  EngineLoad a = engine(), b = engine();
  a.sent(100);
  EXPECT_LT(b.cost(10), a.cost(10));
  a.seen(100);
  a.grew(7);
  EXPECT_EQ(a.num_tokens_in_flight(), 107);
  a.ended(107);
  EXPECT_EQ(a.cost(10), b.cost(10));
  EXPECT_EQ(a.num_in_flight(), 0);
}

TEST(EngineLoad, AReportDoesNotHideWhatWasSentAfterIt) {
  EngineLoad a = engine();
  a.sent(160);
  a.heard(load(1000, 1000, 0, 1));  // left the engine before the request came
  EXPECT_EQ(a.cost(1).num_tokens, 160);
}

TEST(EngineLoad, TokensOfOtherFrontEndsCountAsOfTheLastWord) {
  EngineLoad a = engine(), b = engine();
  a.heard(load(1000, 900, 5, 1));
  EXPECT_EQ(a.cost(1).num_tokens, 1600);
  EXPECT_LT(b.cost(1), a.cost(1));
  a.heard(load(1000, 1000, 0, 2));
  EXPECT_EQ(a.cost(1), b.cost(1));
}

TEST(EngineLoad, AnOvertakenReportIsIgnored) {
  EngineLoad a = engine();
  a.heard(load(1000, 1000, 0, 9));
  a.heard(load(1000, 100, 3, 8));
  EXPECT_EQ(a.cost(1).num_tokens, 0);
}

TEST(EngineLoad, WhereARequestWouldWaitIsTheLastChoice) {
  EngineLoad full = engine(100), busy = engine(1000);
  full.heard(load(100, 2, 1, 1));
  busy.sent(5000);
  EXPECT_FALSE(full.cost(20).would_wait);
  EXPECT_TRUE(full.cost(40).would_wait);
  EXPECT_LT(busy.cost(40), full.cost(40));
  EngineLoad seats = engine(1000, 2);
  seats.sent(1);
  seats.sent(1);
  EXPECT_TRUE(seats.cost(1).would_wait);
}

// Mixed lengths, requests that end at random: nobody starves, and the spread of tokens stays within a few requests.
TEST(EngineLoad, StreamsOfMixedRequestsStayBalanced) {
  constexpr int kEngines = 8;
  std::mt19937 random(7);
  std::vector<EngineLoad> engines(kEngines, engine(100000, 4096));
  struct Request {
    int engine;
    int64_t num_tokens;
  };
  std::vector<Request> running;
  std::vector<int> num_given(kEngines);
  int64_t worst = 0;
  for (int i = 0; i < 20000; ++i) {
    const int64_t n = random() % 10 == 0 ? 4000 : 1 + random() % 400;
    int best = i % kEngines;
    for (int k = 0; k < kEngines; ++k) {
      const int e = (i + k) % kEngines;
      if (engines[e].cost(n) < engines[best].cost(n)) best = e;
    }
    engines[best].sent(n);
    engines[best].seen(n);
    ++num_given[best];
    running.push_back({best, n});
    if (running.size() > 400) {
      std::swap(running[random() % running.size()], running.back());
      engines[running.back().engine].ended(running.back().num_tokens);
      running.pop_back();
    }
    if (i < 2000) continue;
    const auto [low, high] = std::minmax_element(engines.begin(), engines.end(), [](const auto& x, const auto& y) {
      return x.num_tokens_in_flight() < y.num_tokens_in_flight();
    });
    worst = std::max(worst, high->num_tokens_in_flight() - low->num_tokens_in_flight());
  }
  EXPECT_LE(worst, 4 * 4000);
  for (const int given : num_given) EXPECT_NEAR(given, 20000 / kEngines, 20000 / kEngines / 5);
}

}  // namespace
}  // namespace manta::engine
