#include "backend/host/thread_team.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

namespace manta::backend::host {
namespace {

TEST(ThreadTeam, CoversEveryIndexOnceForAnyTeamAndGrain) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadTeam team(threads);
    EXPECT_EQ(team.num_threads(), threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 64, 5000}) {
        std::vector<int> hits(n, 0);  // each index belongs to one piece, so no two threads touch the same one
        team.parallel_for(n, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_LT(begin, end);
          EXPECT_GE(thread, 0);
          EXPECT_LT(thread, threads);
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        EXPECT_EQ(std::count(hits.begin(), hits.end(), 1), n) << threads << " threads, grain " << grain;
      }
    }
  }
}

// Jobs that end before a worker wakes, one after the other: a late worker must never run a job that is over.
TEST(ThreadTeam, ManyShortJobsInARow) {
  ThreadTeam team(4);
  int64_t total = 0;
  for (int job = 0; job < 20000; ++job) {
    std::array<int64_t, 5> part{};  // on the stack: a straggler would write into freed memory
    team.parallel_for(5, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) part[i] = i + job;
    });
    total += std::accumulate(part.begin(), part.end(), int64_t{0});
  }
  EXPECT_EQ(total, 20000 * 10 + 5 * (int64_t{20000} * 19999 / 2));
}

TEST(ThreadTeam, MutableAndConstBodies) {
  ThreadTeam team(2);
  std::atomic<int> calls{0};
  const auto body = [&calls](int64_t begin, int64_t end, int) { calls += static_cast<int>(end - begin); };
  team.parallel_for(10, 1, body);
  EXPECT_EQ(calls, 10);
}

TEST(ThreadTeam, DefaultsToTheCoresOfThisProcess) {
  ThreadTeam team(0);
  EXPECT_EQ(team.num_threads(), available_cores());
}

TEST(ThreadTeam, SpinningIsBoundedAndWorks) {
  ThreadTeam team(3, /*spin_us=*/50);
  std::atomic<int64_t> sum{0};
  for (int job = 0; job < 200; ++job) {
    team.parallel_for(100, 7, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
  }
  EXPECT_EQ(sum, 20000);
}

}  // namespace
}  // namespace manta::backend::host
