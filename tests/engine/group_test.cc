// Ranks that step together: coordinator, engines with a FakeExecutor each, a front-end.
#include "deployment_fixture.h"

namespace manta::engine {
namespace {

constexpr int kRanks = 3;

class GroupTest : public testing::Test {
 protected:
  static std::vector<TokenId> script(int n) {
    const auto options = fake_options();
    std::vector<TokenId> tokens;
    for (int i = 0; i < n; ++i) tokens.push_back(options.script[i % options.script.size()]);
    return tokens;
  }
  static cluster::CoordinatorOptions group(int size) {
    cluster::CoordinatorOptions options;
    options.group_size = size;
    return options;
  }
  std::unique_ptr<EngineNode> start(int rank) {
    auto fake = fake_options();
    fake.step_duration = std::chrono::microseconds(300);
    return std::make_unique<EngineNode>(rank, address_, fake, kRanks);
  }
  void start_all() {
    for (int rank = 0; rank < kRanks; ++rank) ranks_.push_back(start(rank));
    front_end_.wait_for_engines(kRanks);
  }
  uint64_t num_dummy_steps(int rank) { return ranks_[rank]->engine().snapshot().load.num_dummy_steps; }
  // Real and dummy steps together: every rank has run the same number, once all stand still.
  uint64_t num_steps(int rank) {
    const Load load = ranks_[rank]->engine().snapshot().load;
    return load.num_steps + load.num_dummy_steps;
  }

  std::string address_ = unique_address("coordinator");
  std::unique_ptr<CoordinatorNode> coordinator_ = std::make_unique<CoordinatorNode>(address_, group(kRanks));
  std::vector<std::unique_ptr<EngineNode>> ranks_;
  FrontEndNode front_end_{address_};
};

TEST_F(GroupTest, NobodyServesBeforeEveryRankIsThere) {
  ranks_.push_back(start(0));
  ranks_.push_back(start(1));
  front_end_.wait([&] { return front_end_.engines().size() == 2; });
  EXPECT_FALSE(ranks_[0]->engine().snapshot().serving);
  ranks_.push_back(start(2));
  front_end_.wait_for_engines(kRanks);
  EXPECT_EQ(front_end_.wait_for_end(front_end_.submit(20, 10)).tokens, script(10));
}

TEST_F(GroupTest, IdleRanksRunDummyStepsAndAnIdleGroupNone) {
  start_all();
  EXPECT_EQ(front_end_.wait_for_end(front_end_.submit(20, 50, 1)).tokens, script(50));
  front_end_.wait([&] { return num_steps(0) == num_steps(1) && num_steps(1) == num_steps(2); });
  EXPECT_GE(num_dummy_steps(0), 50u);
  EXPECT_GE(num_dummy_steps(2), 50u);
  const uint64_t before = num_steps(0);
  EXPECT_GE(before, 50u);
  EXPECT_LE(before, 52u) << "one step a token, at most the asynchronous one after the last";
  // Awake again, for a request to another rank.
  EXPECT_EQ(front_end_.wait_for_end(front_end_.submit(20, 5, 2)).tokens, script(5));
  front_end_.wait([&] { return num_steps(0) == num_steps(2); });
  EXPECT_LE(num_steps(0), before + 7) << "nothing ran in between";
}

TEST_F(GroupTest, ManyRequestsOverAllRanks) {
  start_all();
  std::vector<RequestId> ids;
  for (int i = 0; i < 60; ++i) ids.push_back(front_end_.submit(10 + i, 30 + i));
  for (int i = 0; i < 60; ++i) EXPECT_EQ(front_end_.wait_for_end(ids[i]).tokens, script(30 + i));
  front_end_.wait([&] { return num_steps(0) == num_steps(1) && num_steps(1) == num_steps(2); });
}

TEST_F(GroupTest, ADeadRankIsReplacedAndNoStreamNotices) {
  start_all();
  std::vector<RequestId> ids;
  for (int i = 0; i < 12; ++i) ids.push_back(front_end_.submit(20, 300));
  for (const RequestId id : ids) front_end_.wait_for_tokens(id, 3);
  const uint64_t epoch = ranks_[0]->engine().snapshot().group.epoch;
  ranks_[1]->kill();
  front_end_.wait([&] { return ranks_[0]->engine().snapshot().group.epoch == 0; });
  ranks_[1] = start(1);
  for (const RequestId id : ids) {
    const auto answer = front_end_.wait_for_end(id);
    EXPECT_EQ(answer.tokens, script(300)) << answer.error;
  }
  EXPECT_GT(ranks_[0]->engine().snapshot().group.epoch, epoch);
}

TEST_F(GroupTest, ANewCoordinatorFormsTheGroupAgain) {
  start_all();
  std::vector<RequestId> ids;
  for (int i = 0; i < 12; ++i) ids.push_back(front_end_.submit(20, 300));
  for (const RequestId id : ids) front_end_.wait_for_tokens(id, 3);
  const uint64_t epoch = ranks_[0]->engine().snapshot().group.epoch;
  coordinator_ = nullptr;
  coordinator_ = std::make_unique<CoordinatorNode>(address_, group(kRanks));
  for (const RequestId id : ids) {
    const auto answer = front_end_.wait_for_end(id);
    EXPECT_EQ(answer.tokens, script(300)) << answer.error;
  }
  EXPECT_GT(ranks_[0]->engine().snapshot().group.epoch, epoch);
}

TEST_F(GroupTest, RanksDrainTogether) {
  start_all();
  const RequestId id = front_end_.submit(20, 200, 2);
  front_end_.wait_for_tokens(id, 3);
  std::vector<std::thread> drains;
  for (auto& rank : ranks_) drains.emplace_back([&rank] { rank->drain(); });
  EXPECT_EQ(front_end_.wait_for_end(id).tokens, script(200));
  for (auto& drain : drains) drain.join();
  for (const auto& rank : ranks_) EXPECT_TRUE(rank->status.ok()) << rank->status.error().message;
}

}  // namespace
}  // namespace manta::engine
