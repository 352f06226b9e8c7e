#include "cluster/link.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/frame_connection.h"

namespace manta::cluster {
namespace {

// Accepts members and answers when it is told to.
class LinkTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string address = "unix:@manta-link-test-" + std::to_string(::getpid());
    auto listener = listen_frames(io_, address, [this](FrameConnectionPtr member) {
      member_ = std::move(member);
      ++num_connections_;
      member_->start([this](Frame&& frame) { on_frame(frame); }, [](const Error&) {});
    });
    ASSERT_TRUE(listener.ok()) << listener.error().message;
    listener_ = std::move(*listener);
    LinkOptions options;
    options.coordinator = address;
    options.heartbeat = [] { return Heartbeat{}; };
    options.on_membership = [](Epoch, const Membership&) {};
    options.on_suspect = [this](bool silent) { suspicions_.push_back(silent); };
    options.on_silence = [this] { ++num_silences_; };
    options.suspect = std::chrono::milliseconds(250);
    options.deadline = std::chrono::milliseconds(750);
    link_ = std::make_unique<Link>(io_, std::move(options));
  }

  void on_frame(const Frame& frame) {
    if (answers_ && frame.kind == FrameKind::kHeartbeat) member_->send(FrameKind::kHeartbeat, Epoch{}, {});
    if (frame.kind == FrameKind::kHeartbeat) ++num_heartbeats_;
  }
  template <class Condition>
  void run_until(Condition condition) {
    while (!condition()) io_.run_one();
  }

  boost::asio::io_context io_;
  std::unique_ptr<FrameListener> listener_;
  FrameConnectionPtr member_;
  std::unique_ptr<Link> link_;
  bool answers_ = true;
  int num_connections_ = 0, num_heartbeats_ = 0, num_silences_ = 0;
  std::vector<bool> suspicions_;
};

TEST_F(LinkTest, ACoordinatorThatAnswersIsNotSuspected) {
  run_until([this] { return num_heartbeats_ == 4; });
  EXPECT_TRUE(suspicions_.empty());
}

TEST_F(LinkTest, SilenceIsToldAndItsEndToo) {
  answers_ = false;
  run_until([this] { return !suspicions_.empty(); });
  answers_ = true;
  run_until([this] { return suspicions_.size() == 2; });
  EXPECT_EQ(suspicions_, (std::vector<bool>{true, false}));
  EXPECT_EQ(num_silences_, 0);
  EXPECT_EQ(num_connections_, 1);
}

TEST_F(LinkTest, SilencePastTheDeadlineEndsTheConnection) {
  answers_ = false;
  run_until([this] { return num_silences_ == 1; });
  EXPECT_EQ(suspicions_, std::vector<bool>{true}) << "told before, once";
  run_until([this] { return num_connections_ == 2; });
}

}  // namespace
}  // namespace manta::cluster
