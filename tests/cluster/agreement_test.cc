// Every step is decided once, when all have voted and somebody has work; nobody is ever forgotten.
#include "cluster/agreement.h"

#include <gtest/gtest.h>

#include <random>

namespace manta::cluster {
namespace {

using Outcome = Agreement::Outcome;

constexpr Epoch kEpoch{7};

Vote work(uint64_t step, int num_tokens, bool all_decode = true, int num_microbatches = 1) {
  Vote v;
  v.step = step;
  v.has_work = true;
  v.all_decode = all_decode;
  v.num_tokens = num_tokens;
  v.num_microbatches = num_microbatches;
  return v;
}

Vote idle(uint64_t step) {
  Vote v;
  v.step = step;
  return v;
}

Vote leaving(uint64_t step) {
  Vote v = idle(step);
  v.leaving = true;
  return v;
}

class AgreementTest : public testing::Test {
 protected:
  AgreementTest() { agreement_.reset(kEpoch, 3); }
  Outcome vote(int rank, const Vote& v, Epoch epoch = kEpoch) {
    const auto outcome = agreement_.vote(rank, epoch, v);
    EXPECT_TRUE(outcome.ok()) << outcome.error().message;
    return outcome.ok() ? *outcome : Outcome::kLate;
  }
  Agreement agreement_;
};

TEST_F(AgreementTest, DecidesWhenAllHaveVotedAndSomebodyHasWork) {
  EXPECT_EQ(vote(0, work(1, 5, true)), Outcome::kPending);
  EXPECT_EQ(vote(1, idle(1)), Outcome::kPending);
  EXPECT_EQ(vote(2, work(1, 40, false)), Outcome::kDecided);
  for (int rank = 0; rank < 3; ++rank) {
    const Decision d = agreement_.decision_for(rank);
    EXPECT_EQ(d.step, 1u);
    EXPECT_EQ(d.counted, rank != 1);
    EXPECT_FALSE(d.all_decode);
    EXPECT_EQ(d.max_num_tokens, 40);
    EXPECT_EQ(d.num_microbatches, 1);
    EXPECT_FALSE(d.leave);
  }
  EXPECT_EQ(agreement_.step(), 2u);
}

TEST_F(AgreementTest, AStepIsSplitOnlyIfEveryRankWithWorkAsksForIt) {
  vote(0, work(1, 64, true, 2));
  vote(1, idle(1));
  vote(2, work(1, 64, true, 2));
  EXPECT_EQ(agreement_.decision_for(1).num_microbatches, 2) << "a rank without rows has no reason to refuse";
  vote(0, work(2, 64, true, 2));
  vote(1, work(2, 3, true, 1));
  vote(2, work(2, 64, true, 2));
  EXPECT_EQ(agreement_.decision_for(0).num_microbatches, 1);
}

TEST_F(AgreementTest, NobodyHasWorkPausesAndTheFirstWorkWakesAll) {
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(vote(rank, idle(1)), Outcome::kPending);
  EXPECT_EQ(vote(2, work(1, 9)), Outcome::kDecided) << "its later vote replaces the first";
  EXPECT_TRUE(agreement_.decision_for(2).counted);
  EXPECT_FALSE(agreement_.decision_for(0).counted);
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(vote(rank, idle(2)), Outcome::kPending);
  EXPECT_TRUE(agreement_.owing().empty()) << "a pause is nobody's fault";
}

TEST_F(AgreementTest, WorkThatComesTooLateIsNotCounted) {
  vote(0, work(1, 5));
  vote(1, idle(1));
  EXPECT_EQ(vote(2, idle(1)), Outcome::kDecided);
  EXPECT_EQ(vote(1, work(1, 6)), Outcome::kLate);
  EXPECT_FALSE(agreement_.decision_for(1).counted);
}

TEST_F(AgreementTest, AnotherEpochIsStaleAndNotForgotten) {
  EXPECT_EQ(vote(0, work(1, 5), Epoch{6}), Outcome::kStale);
  EXPECT_EQ(vote(0, work(1, 5), Epoch{8}), Outcome::kStale);
  agreement_.dissolve();
  EXPECT_EQ(vote(0, work(1, 5)), Outcome::kStale);
  agreement_.reset(Epoch{8}, 3);
  EXPECT_EQ(vote(0, work(1, 5), Epoch{8}), Outcome::kPending);
}

TEST_F(AgreementTest, VotesBeforeAResetAreVoid) {
  vote(0, work(1, 5));
  vote(1, work(1, 5));
  agreement_.reset(Epoch{8}, 3);
  EXPECT_EQ(vote(2, work(1, 5), Epoch{8}), Outcome::kPending);
}

TEST_F(AgreementTest, WhatNoRankCanMeanIsRefused) {
  EXPECT_FALSE(agreement_.vote(3, kEpoch, idle(1)).ok());
  EXPECT_FALSE(agreement_.vote(-1, kEpoch, idle(1)).ok());
  EXPECT_FALSE(agreement_.vote(0, kEpoch, idle(2)).ok()) << "a step ahead of the group";
  EXPECT_FALSE(agreement_.vote(0, kEpoch, work(1, -1)).ok());
  EXPECT_FALSE(agreement_.vote(0, kEpoch, work(1, 1, true, 0)).ok());
}

TEST_F(AgreementTest, TheLastToVoteIsNamed) {
  vote(1, idle(1));
  EXPECT_TRUE(agreement_.owing().empty()) << "nobody has work: nobody waits";
  vote(0, work(1, 5));
  EXPECT_EQ(agreement_.owing(), std::vector<int>{2});
}

TEST_F(AgreementTest, RanksLeaveTogether) {
  vote(0, leaving(1));
  vote(1, leaving(1));
  EXPECT_EQ(vote(2, work(1, 4)), Outcome::kDecided);
  EXPECT_FALSE(agreement_.decision_for(0).leave) << "it still serves the experts of the last stream";
  vote(0, leaving(2));
  vote(1, leaving(2));
  EXPECT_EQ(vote(2, idle(2)), Outcome::kPending);
  EXPECT_EQ(vote(2, leaving(2)), Outcome::kDecided);
  EXPECT_TRUE(agreement_.decision_for(1).leave);
}

// Ranks with random work, votes in random order, some repeated, some of earlier steps.
TEST(AgreementProperty, EveryRankRunsTheSameSteps) {
  std::mt19937 random(1);
  for (int num_ranks : {1, 2, 5, 32}) {
    Agreement agreement;
    agreement.reset(kEpoch, num_ranks);
    std::vector<int> work_left(num_ranks), done(num_ranks);
    std::vector<uint64_t> step(num_ranks, 1);
    int total = 0;
    for (int turn = 0; turn < 20000; ++turn) {
      const int rank = static_cast<int>(random() % num_ranks);
      if (random() % 64 == 0) {
        const int more = static_cast<int>(random() % 5);
        work_left[rank] += more;
        total += more;
      }
      const bool late = random() % 16 == 0 && step[rank] > 1;
      const uint64_t at = late ? step[rank] - 1 : step[rank];
      const auto outcome = agreement.vote(rank, kEpoch, work_left[rank] > 0 ? work(at, 1) : idle(at));
      ASSERT_TRUE(outcome.ok()) << outcome.error().message;
      ASSERT_EQ(*outcome == Outcome::kLate, late);
      if (*outcome != Outcome::kDecided) continue;
      int num_counted = 0;
      for (int r = 0; r < num_ranks; ++r) {
        const Decision d = agreement.decision_for(r);
        ASSERT_EQ(d.step, step[r]);
        ++step[r];
        if (!d.counted) continue;
        ++num_counted;
        ASSERT_GT(work_left[r], 0);
        --work_left[r];
        ++done[r];
      }
      ASSERT_GT(num_counted, 0) << "a step for nobody";
    }
    while (true) {  // what is left gets done
      bool decided = false;
      for (int r = 0; r < num_ranks; ++r) {
        decided = *agreement.vote(r, kEpoch, work_left[r] > 0 ? work(step[r], 1) : idle(step[r])) == Outcome::kDecided;
        if (!decided) continue;
        for (int q = 0; q < num_ranks; ++q) {
          ++step[q];
          if (!agreement.decision_for(q).counted) continue;
          --work_left[q];
          ++done[q];
        }
        break;
      }
      if (!decided) break;
    }
    int sum = 0;
    for (const int d : done) sum += d;
    EXPECT_EQ(sum, total);
  }
}

}  // namespace
}  // namespace manta::cluster
