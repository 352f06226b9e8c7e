#include "cluster/roster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace manta::cluster {
namespace {

using std::chrono::milliseconds;

class RosterTest : public testing::Test {
 protected:
  static Join engine(int rank, int pid, std::string model = "tiny") {
    Join j;
    j.self.role = Role::kEngine;
    j.self.rank = rank;
    j.self.pid = pid;
    j.self.host = "h";
    j.shared_config = {{"model", std::move(model)}, {"block_size", "64"}};
    return j;
  }
  static Heartbeat beat(State state, uint64_t counter = 0, bool busy = false) {
    Heartbeat b;
    b.state = state;
    b.where.counter = counter;
    b.where.busy = busy;
    b.where.stage = "experts";
    b.where.layer = 3;
    b.where.step = 17;
    return b;
  }
  State state_of(int rank) {
    for (const auto& m : roster_.membership().members) {
      if (m.role == Role::kEngine && m.rank == rank) return m.state;
    }
    return State::kGone;
  }
  // Heartbeats every 250 ms for `duration`, ticking along.
  void live(MemberId id, milliseconds duration, const Heartbeat& b) {
    for (milliseconds t{0}; t < duration; t += milliseconds(250)) {
      now_ += milliseconds(250);
      roster_.heartbeat(id, b, now_);
      roster_.tick(now_);
    }
  }

  Time now_{};
  Roster roster_{Deadlines{}};
};

TEST_F(RosterTest, EpochGrowsWithEnginesOnly) {
  const uint64_t before = roster_.epoch().value;
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  const uint64_t one = roster_.epoch().value;
  EXPECT_GT(one, before);
  Join api;
  api.self.role = Role::kApi;
  ASSERT_TRUE(roster_.join(2, api, now_).ok());
  EXPECT_EQ(roster_.epoch().value, one);
  roster_.leave(2, "bye");
  EXPECT_EQ(roster_.epoch().value, one);
  roster_.leave(1, "crash");
  EXPECT_EQ(roster_.epoch().value, one + 1);
}

TEST_F(RosterTest, ANewCoordinatorGoesBeyondEveryEpochSeen) {
  Join j = engine(0, 100);
  j.last_epoch = 41;
  ASSERT_TRUE(roster_.join(1, j, now_).ok());
  EXPECT_GT(roster_.epoch().value, 41u);
}

TEST_F(RosterTest, RefusesATakenRankAndNamesBoth) {
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  const Status again = roster_.join(2, engine(0, 200), now_);
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().message,
            "engine rank 0 (host h, pid 200): that rank is taken by engine rank 0 (host h, pid 100)");
}

TEST_F(RosterTest, RefusesADifferentConfigurationNamingTheKey) {
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  const Status other = roster_.join(2, engine(1, 200, "big"), now_);
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.error().message.find("model = big here, model = tiny in the deployment"), std::string::npos)
      << other.error().message;
  roster_.leave(1, "gone");
  EXPECT_TRUE(roster_.join(3, engine(1, 200, "big"), now_).ok()) << "an empty group takes any configuration";
}

TEST_F(RosterTest, AHeadKnowsItsConfigurationBeforeAnybodyJoins) {
  const Join tiny = engine(0, 100);
  Roster head({}, tiny.shared_config);
  Join node = engine(1, 200, "big");
  node.self.role = Role::kSupervisor;
  EXPECT_FALSE(head.join(1, node, now_).ok()) << "also who is no engine";
  Join front_end = node;
  front_end.shared_config.clear();
  EXPECT_TRUE(head.join(2, front_end, now_).ok()) << "nothing to compare";
  EXPECT_TRUE(head.join(3, tiny, now_).ok());
}

TEST_F(RosterTest, SilenceMakesSuspectThenGoneAndNamesWhere) {
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  live(1, milliseconds(1000), beat(State::kReady));
  EXPECT_EQ(state_of(0), State::kReady);
  now_ += milliseconds(999);
  EXPECT_TRUE(roster_.tick(now_).empty());
  EXPECT_EQ(state_of(0), State::kReady);
  now_ += milliseconds(1);
  EXPECT_TRUE(roster_.tick(now_).empty());
  EXPECT_EQ(state_of(0), State::kSuspect);
  now_ += milliseconds(4000);
  EXPECT_EQ(roster_.tick(now_), std::vector<MemberId>{1});
  const Membership m = roster_.membership();
  EXPECT_TRUE(m.members.empty());
  ASSERT_EQ(m.departures.size(), 1u);
  EXPECT_EQ(m.departures[0].pid, 100);
  EXPECT_EQ(m.departures[0].why,
            "engine rank 0 (host h, pid 100): no heartbeat for 5.0 s; last seen at step 17, layer 3, stage experts");
  EXPECT_TRUE(roster_.membership().departures.empty()) << "told once";
}

TEST_F(RosterTest, ASuspectThatSpeaksIsReadyAgain) {
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  live(1, milliseconds(250), beat(State::kReady));
  now_ += milliseconds(2000);
  roster_.tick(now_);
  EXPECT_EQ(state_of(0), State::kSuspect);
  roster_.heartbeat(1, beat(State::kReady), now_);
  EXPECT_EQ(state_of(0), State::kReady);
  EXPECT_TRUE(roster_.take_changed());
}

TEST_F(RosterTest, BusyWithoutProgressIsStuckIdleIsNot) {
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  ASSERT_TRUE(roster_.join(2, engine(1, 200), now_).ok());
  for (milliseconds t{0}; t < milliseconds(59000); t += milliseconds(250)) {
    now_ += milliseconds(250);
    roster_.heartbeat(1, beat(State::kReady, 5, /*busy=*/true), now_);
    roster_.heartbeat(2, beat(State::kReady, 5, /*busy=*/false), now_);
    ASSERT_TRUE(roster_.tick(now_).empty());
  }
  now_ += milliseconds(1250);
  roster_.heartbeat(1, beat(State::kReady, 5, true), now_);
  roster_.heartbeat(2, beat(State::kReady, 5, false), now_);
  EXPECT_EQ(roster_.tick(now_), std::vector<MemberId>{1});
  EXPECT_NE(roster_.membership().departures[0].why.find("no progress"), std::string::npos);
}

TEST_F(RosterTest, LoadFiguresAloneAreNoNews) {
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  roster_.heartbeat(1, beat(State::kReady), now_);
  EXPECT_TRUE(roster_.take_changed());
  Heartbeat b = beat(State::kReady, 9, true);
  b.num_running = 12;
  roster_.heartbeat(1, b, now_);
  EXPECT_FALSE(roster_.take_changed());
}

// Three engines that announced their place in a group.
class GroupOfThree : public RosterTest {
 protected:
  GroupOfThree() {
    for (int rank = 0; rank < 3; ++rank) arrive(rank);
    roster_.settle_group(3, now_);
  }
  void arrive(int rank) {
    ++last_id_;
    EXPECT_TRUE(roster_.join(last_id_, engine(rank, 100 + static_cast<int>(last_id_)), now_).ok());
    announce(last_id_);
  }
  void announce(MemberId id) { roster_.heartbeat(id, here(), now_); }
  static Heartbeat here(uint64_t fault_epoch = 0) {
    Heartbeat b = beat(State::kReady);
    b.group.announced = true;
    b.group.fault_epoch = fault_epoch;
    return b;
  }
  void wait(milliseconds duration) {
    now_ += duration;
    roster_.settle_group(3, now_);
  }
  void lose(MemberId id) {
    roster_.leave(id, "connection closed");
    roster_.settle_group(3, now_);
  }

  MemberId last_id_ = 0;
};

TEST_F(GroupOfThree, GoesOnWithoutARankThatStaysAwayAndTakesItBack) {
  EXPECT_THAT(roster_.group(), ::testing::ElementsAre(0, 1, 2));
  const Epoch whole = roster_.epoch();
  lose(2);
  EXPECT_GT(roster_.epoch(), whole);
  EXPECT_TRUE(roster_.group().empty()) << "it may be back at once";
  wait(milliseconds(999));
  EXPECT_TRUE(roster_.group().empty());
  wait(milliseconds(1));
  EXPECT_THAT(roster_.group(), ::testing::ElementsAre(0, 2));
  EXPECT_EQ(roster_.membership().group, roster_.group());
  lose(3);
  EXPECT_THAT(roster_.group(), ::testing::ElementsAre(0)) << "the second one is not waited for again";
  const Epoch alone = roster_.epoch();
  arrive(1);
  roster_.settle_group(3, now_);
  EXPECT_THAT(roster_.group(), ::testing::ElementsAre(0, 1));
  EXPECT_GT(roster_.epoch(), alone) << "an epoch has one group";
  arrive(2);
  roster_.settle_group(3, now_);
  EXPECT_THAT(roster_.group(), ::testing::ElementsAre(0, 1, 2));
}

TEST_F(GroupOfThree, ARankThatIsBackInTimeIsWaitedFor) {
  lose(2);
  wait(milliseconds(500));
  arrive(1);
  roster_.settle_group(3, now_);
  EXPECT_THAT(roster_.group(), ::testing::ElementsAre(0, 1, 2));
  lose(1);
  wait(milliseconds(999));
  EXPECT_TRUE(roster_.group().empty()) << "the time counts anew";
}

TEST_F(GroupOfThree, AGroupThatFailsWithoutARankIsNotTriedAtOnce) {
  lose(2);
  wait(milliseconds(1000));
  ASSERT_EQ(roster_.group().size(), 2u);
  roster_.heartbeat(1, here(roster_.epoch().value), now_);
  roster_.settle_group(3, now_);
  EXPECT_TRUE(roster_.group().empty());
  wait(milliseconds(1000));
  EXPECT_EQ(roster_.group().size(), 2u);
}

TEST_F(RosterTest, AGroupThatWasNeverWholeDoesNotShrink) {
  ASSERT_TRUE(roster_.join(1, engine(0, 100), now_).ok());
  Heartbeat b = beat(State::kReady);
  b.group.announced = true;
  roster_.heartbeat(1, b, now_);
  roster_.settle_group(2, now_);
  now_ += std::chrono::hours(1);
  roster_.settle_group(2, now_);
  EXPECT_TRUE(roster_.group().empty()) << "the other one may still load its weights";
}

}  // namespace
}  // namespace manta::cluster
