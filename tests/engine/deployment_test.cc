// Front-end, engines and coordinator together: requests reach an end whatever dies.
#include <cstring>

#include "base/frame_connection.h"
#include "cluster/link.h"
#include "deployment_fixture.h"

namespace manta::engine {
namespace {

class DeploymentTest : public testing::Test {
 protected:
  // What the FakeExecutor says for any prompt: its script, over and over.
  static std::vector<TokenId> script(int n) {
    const auto options = fake_options();
    std::vector<TokenId> tokens;
    for (int i = 0; i < n; ++i) tokens.push_back(options.script[i % options.script.size()]);
    return tokens;
  }
  static exec::FakeExecutorOptions paced() {
    auto options = fake_options();
    options.step_duration = std::chrono::milliseconds(2);
    return options;
  }

  std::string coordinator_address_ = unique_address("coordinator");
  CoordinatorNode coordinator_{coordinator_address_};
};

TEST_F(DeploymentTest, ARequestWalksTheWholeRoad) {
  EngineNode engine(0, coordinator_address_);
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  const auto answer = front_end.wait_for_end(front_end.submit(100, 40));
  EXPECT_EQ(answer.finish, FinishReason::kLength);
  EXPECT_EQ(answer.tokens, script(40));
}

TEST_F(DeploymentTest, ManyRequestsOverTwoEnginesAndTwoFrontEnds) {
  EngineNode engine0(0, coordinator_address_), engine1(1, coordinator_address_);
  FrontEndNode a(coordinator_address_), b(coordinator_address_);
  a.wait_for_engines(2);
  b.wait_for_engines(2);
  std::vector<RequestId> ids_a, ids_b;
  for (int i = 0; i < 60; ++i) {
    ids_a.push_back(a.submit(10 + i, 30 + i));
    ids_b.push_back(b.submit(10 + i, 30 + i));
  }
  for (int i = 0; i < 60; ++i) {
    EXPECT_EQ(a.wait_for_end(ids_a[i]).tokens, script(30 + i));
    EXPECT_EQ(b.wait_for_end(ids_b[i]).tokens, script(30 + i));
  }
  // Nothing is in flight any more, and no block stays taken.
  const auto idle = [](const Snapshot& s) {
    return s.load.num_running == 0 && s.load.num_waiting == 0 && s.load.num_free_blocks == s.load.num_blocks;
  };
  a.wait([&] { return idle(engine0.engine().snapshot()) && idle(engine1.engine().snapshot()); });
  EXPECT_GT(engine0.engine().snapshot().load.num_steps, 0u);
  EXPECT_GT(engine1.engine().snapshot().load.num_steps, 0u);
}

TEST_F(DeploymentTest, TiesRotateOverEngines) {
  auto slow = fake_options();
  slow.step_duration = std::chrono::milliseconds(5);
  EngineNode e0(0, coordinator_address_, slow), e1(1, coordinator_address_, slow), e2(2, coordinator_address_, slow);
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(3);
  std::vector<RequestId> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(front_end.submit(10, 20));
  for (const auto& e : front_end.engines()) EXPECT_EQ(e.num_in_flight, 2) << "rank " << e.rank;
  for (const RequestId id : ids) front_end.wait_for_end(id);
}

TEST_F(DeploymentTest, ARankCanBeAskedFor) {
  EngineNode e0(0, coordinator_address_), e1(1, coordinator_address_);
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(2);
  for (int i = 0; i < 5; ++i) front_end.wait_for_end(front_end.submit(10, 5, 1));
  EXPECT_EQ(e0.engine().snapshot().load.num_steps, 0u);
}

TEST_F(DeploymentTest, AnEngineThatDiesLosesNoToken) {
  auto e0 = std::make_unique<EngineNode>(0, coordinator_address_, paced());
  EngineNode e1(1, coordinator_address_, paced());
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(2);
  std::vector<RequestId> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(front_end.submit(20, 200));
  for (const RequestId id : ids) front_end.wait_for_tokens(id, 10);
  e0->kill();
  for (const RequestId id : ids) {
    const auto answer = front_end.wait_for_end(id);
    EXPECT_EQ(answer.error, "");
    EXPECT_EQ(answer.tokens, script(200)) << "the survivor continues where the dead one stopped";
  }
}

TEST_F(DeploymentTest, WithoutAnotherEngineTheClientIsTold) {
  auto e0 = std::make_unique<EngineNode>(0, coordinator_address_, paced());
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  const RequestId id = front_end.submit(20, 900);
  front_end.wait_for_tokens(id, 5);
  e0->kill();
  const auto answer = front_end.wait_for_end(id);
  EXPECT_EQ(answer.finish, FinishReason::kError);
  EXPECT_NE(answer.error.find("died"), std::string::npos) << answer.error;
}

TEST_F(DeploymentTest, AReplacementTakesTheOrphans) {
  auto e0 = std::make_unique<EngineNode>(0, coordinator_address_, paced());
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  const RequestId id = front_end.submit(20, 150);
  front_end.wait_for_tokens(id, 5);
  e0->kill();
  EngineNode again(0, coordinator_address_, paced());
  EXPECT_EQ(front_end.wait_for_end(id).tokens, script(150));
}

TEST_F(DeploymentTest, AbortFreesTheBlocks) {
  EngineNode engine(0, coordinator_address_, paced());
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  const RequestId id = front_end.submit(50, 900);
  front_end.wait_for_tokens(id, 3);
  front_end.abort(id);
  front_end.wait([&] {
    const Snapshot s = engine.engine().snapshot();
    return s.load.num_running == 0 && s.load.num_free_blocks == s.load.num_blocks;
  });
  EXPECT_EQ(front_end.answer(id).finish, FinishReason::kNone) << "an aborted request is not heard of again";
}

TEST_F(DeploymentTest, AFrontEndThatGoesTakesItsRequestsAlong) {
  EngineNode engine(0, coordinator_address_, paced());
  {
    FrontEndNode front_end(coordinator_address_);
    front_end.wait_for_engines(1);
    const RequestId id = front_end.submit(50, 900);
    front_end.wait_for_tokens(id, 3);
  }
  FrontEndNode other(coordinator_address_);
  other.wait([&] {
    const Snapshot s = engine.engine().snapshot();
    return s.load.num_running == 0 && s.load.num_free_blocks == s.load.num_blocks;
  });
}

TEST_F(DeploymentTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  EngineNode engine(0, coordinator_address_, paced());
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  const RequestId id = front_end.submit(20, 100);
  front_end.wait_for_tokens(id, 3);
  engine.drain();
  EXPECT_TRUE(engine.status.ok());
  EXPECT_EQ(front_end.wait_for_end(id).tokens, script(100));
  front_end.wait_for_engines(0);
}

TEST_F(DeploymentTest, AFailedStepNamesRankAndStep) {
  EngineNode engine(3, coordinator_address_, paced());
  engine.fake->fail_at(2, error(ErrorCode::kInternal, "device lost"));
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  front_end.submit(20, 100);
  front_end.wait([&] { return engine.ended.load(); });
  ASSERT_FALSE(engine.status.ok());
  EXPECT_NE(engine.status.error().message.find("rank 3: step 2 failed"), std::string::npos)
      << engine.status.error().message;
}

TEST_F(DeploymentTest, WhatCannotRunIsRefusedWithTheNumbers) {
  EngineNode engine(0, coordinator_address_);
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  const auto answer = front_end.wait_for_end(front_end.submit(2000, 10));
  EXPECT_EQ(answer.finish, FinishReason::kError);
  EXPECT_NE(answer.error.find("2000"), std::string::npos) << answer.error;
  EXPECT_NE(answer.error.find("1024"), std::string::npos) << answer.error;
}

TEST(Messages, EveryFieldOfALoadTravels) {
  // A struct of plain counters: give each byte a value, and a field that stays behind shows.
  Outputs sent;
  const auto bytes = reinterpret_cast<unsigned char*>(&sent.load);
  for (size_t i = 0; i < sizeof sent.load; ++i) bytes[i] = static_cast<unsigned char>(1 + i % 100);
  const auto got = decode_outputs(encode(sent));
  ASSERT_TRUE(got.ok()) << got.error().message;
  static_assert(sizeof(Load) == 4 * sizeof(int32_t) + 30 * sizeof(uint64_t), "no padding: the bytes can be compared");
  EXPECT_EQ(std::memcmp(&got->load, &sent.load, sizeof sent.load), 0);
}

TEST_F(DeploymentTest, OutputsSayWhatTheEngineHasDone) {
  EngineNode engine(0, coordinator_address_);
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  front_end.wait_for_end(front_end.submit(100, 40));
  const Load load = front_end.engines()[0].load;
  EXPECT_GT(load.num_steps, 0u);
  EXPECT_EQ(load.num_prompt_tokens, 100u);
  EXPECT_EQ(load.num_generation_tokens, 40u);
}

// A front-end written by hand, to say what the real one would not.
class RawFrontEnd {
 public:
  explicit RawFrontEnd(const std::string& engine) {
    connect_frames(io_, engine, [this](Result<FrameConnectionPtr> c) {
      ASSERT_TRUE(c.ok()) << c.error().message;
      stream_ = *c;
      stream_->start([this](Frame&& f) { frames_.push_back(std::move(f)); },
                     [this](const Error& e) { closed_ = e.message; });
    });
    run_until([this] { return stream_ != nullptr; });
  }
  void send(FrameKind kind, Epoch epoch, const std::string& payload) { stream_->send(kind, epoch, payload); }
  Frame next(FrameKind kind) {
    Frame found;
    run_until([&] {
      for (auto it = frames_.begin(); it != frames_.end(); ++it) {
        if (it->kind != kind) continue;
        found = *it;
        frames_.erase(it);
        return true;
      }
      return false;
    });
    return found;
  }
  std::string wait_for_close() {
    run_until([this] { return !closed_.empty(); });
    return closed_;
  }

 private:
  void run_until(const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!done()) {  // once more would take a frame twice
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      io_.restart();
      io_.run_one_for(std::chrono::seconds(1));
    }
  }

  boost::asio::io_context io_;
  FrameConnectionPtr stream_;
  std::vector<Frame> frames_;
  std::string closed_;
};

Submit small_submit(uint64_t client, uint64_t serial) {
  Submit s;
  s.id = {client, serial};
  s.tokens = {1, 2, 3};
  s.num_prompt_tokens = 3;
  s.sampling.max_tokens = 4;
  return s;
}

TEST_F(DeploymentTest, AStaleEpochIsAnsweredWithTheCurrentOne) {
  EngineNode engine(0, coordinator_address_);
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  RawFrontEnd raw(engine.address());
  raw.send(FrameKind::kHello, Epoch{}, encode(Hello{77, "raw"}));
  const Epoch current = raw.next(FrameKind::kWelcome).epoch;
  raw.send(FrameKind::kSubmit, Epoch{current.value - 1}, encode(small_submit(77, 1)));
  const Frame answer = raw.next(FrameKind::kStale);
  const auto stale = decode_stale(answer.payload);
  ASSERT_TRUE(stale.ok());
  EXPECT_EQ(stale->current, current.value);
  EXPECT_EQ(stale->ids, (std::vector<RequestId>{{77, 1}}));
  // With the epoch it was told, the same request is served.
  raw.send(FrameKind::kSubmit, current, encode(small_submit(77, 1)));
  const auto outputs = decode_outputs(raw.next(FrameKind::kOutputs).payload);
  ASSERT_TRUE(outputs.ok());
  EXPECT_EQ(outputs->requests.at(0).id, (RequestId{77, 1}));
}

TEST_F(DeploymentTest, ANewMemberMovesEverybodyToANewEpoch) {
  EngineNode e0(0, coordinator_address_);
  RawFrontEnd raw(e0.address());
  raw.send(FrameKind::kHello, Epoch{}, encode(Hello{78, "raw"}));
  const Epoch before = raw.next(FrameKind::kWelcome).epoch;
  EngineNode e1(1, coordinator_address_);
  EXPECT_GT(raw.next(FrameKind::kEpoch).epoch, before);
}

TEST_F(DeploymentTest, MalformedFramesCloseOnlyTheirConnection) {
  EngineNode engine(0, coordinator_address_, paced());
  FrontEndNode front_end(coordinator_address_);
  front_end.wait_for_engines(1);
  const RequestId id = front_end.submit(20, 100);
  const auto say = [&](FrameKind kind, const std::string& payload, bool hello) {
    RawFrontEnd raw(engine.address());
    if (hello) {
      raw.send(FrameKind::kHello, Epoch{}, encode(Hello{99, "raw"}));
      raw.next(FrameKind::kWelcome);
    }
    raw.send(kind, Epoch{1}, payload);
    return raw.wait_for_close();
  };
  say(FrameKind::kSubmit, "\xc1garbage", true);
  say(FrameKind::kSubmit, encode(small_submit(5, 1)), true);    // somebody else's id
  say(FrameKind::kSubmit, encode(small_submit(99, 1)), false);  // before the hello
  say(FrameKind::kMembership, "", true);
  say(FrameKind::kAbort, encode(Abort{{{5, 1}}}), true);
  EXPECT_EQ(front_end.wait_for_end(id).tokens, script(100)) << "others are not disturbed";
}

TEST_F(DeploymentTest, StreamsOutliveTheCoordinator) {
  auto coordinator = std::make_unique<CoordinatorNode>(unique_address("mortal"));
  EngineNode engine(0, coordinator->address, paced());
  FrontEndNode front_end(coordinator->address);
  front_end.wait_for_engines(1);
  const uint64_t before = front_end.engines()[0].epoch;
  const RequestId id = front_end.submit(20, 300);
  front_end.wait_for_tokens(id, 3);
  const std::string address = coordinator->address;
  coordinator = nullptr;
  CoordinatorNode next(address);
  front_end.wait([&] { return front_end.engines()[0].epoch > before; });
  EXPECT_EQ(front_end.wait_for_end(id).tokens, script(300));
  EXPECT_EQ(front_end.wait_for_end(front_end.submit(20, 10)).tokens, script(10));
}

// The network lost the connection, the coordinator still has the engine.
TEST_F(DeploymentTest, ABrokenConnectionIsMadeAgain) {
  Loop loop;
  const std::string address = unique_address("broken");
  std::atomic<int> num_hellos{0};
  std::vector<FrameConnectionPtr> connections;
  std::unique_ptr<FrameListener> listener;
  std::unique_ptr<cluster::Link> link;
  loop.call([&] {
    auto opened = listen_frames(loop.io(), address, [&](FrameConnectionPtr connection) {
      connection->start(
          [&, connection](Frame&&) {
            if (++num_hellos == 1) connection->close("cut");
          },
          [](const Error&) {});
      connections.push_back(std::move(connection));
    });
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    listener = std::move(*opened);
    cluster::LinkOptions options;
    options.coordinator = coordinator_address_;
    options.join.self.role = cluster::Role::kEngine;
    options.join.self.address = address;
    options.heartbeat = [] { return cluster::Heartbeat{}; };
    options.on_membership = [](Epoch, const cluster::Membership&) {};
    link = std::make_unique<cluster::Link>(loop.io(), std::move(options));
  });
  FrontEndNode front_end(coordinator_address_);
  front_end.wait([&] { return num_hellos == 2; });
  loop.call([&] { link.reset(); });
  loop.stop();
}

}  // namespace
}  // namespace manta::engine
