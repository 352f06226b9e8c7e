#include "base/frame_connection.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <netdb.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>
#include <future>

#include "run_until.h"

namespace {

constexpr const char* kSlowName = "slow.invalid";
std::future<void> slow_name_may_answer;

}  // namespace

// In place of libc's: one name is answered, with 127.0.0.1, when the test allows it.
extern "C" int getaddrinfo(const char* host, const char* service, const addrinfo* hints, addrinfo** found) {
  const auto real = reinterpret_cast<decltype(&getaddrinfo)>(::dlsym(RTLD_NEXT, "getaddrinfo"));
  if (host == nullptr || std::strcmp(host, kSlowName) != 0) return real(host, service, hints, found);
  if (slow_name_may_answer.wait_for(std::chrono::seconds(20)) != std::future_status::ready) return EAI_AGAIN;
  return real("127.0.0.1", service, hints, found);
}

namespace manta {
namespace {

namespace asio = boost::asio;

// A listener and one connection to it, on one loop.
class FrameConnectionTest : public ::testing::TestWithParam<std::string> {
 protected:
  void open() {
    const std::string name = GetParam() == "tcp" ? "tcp:127.0.0.1:0" : "unix:@manta-test-" + std::to_string(::getpid());
    auto listener = listen_frames(io_, name, [this](FrameConnectionPtr c) { server_ = std::move(c); });
    ASSERT_TRUE(listener.ok()) << listener.error().message;
    listener_ = std::move(*listener);
    connect_frames(io_, listener_->address(), [this](Result<FrameConnectionPtr> c) {
      ASSERT_TRUE(c.ok()) << c.error().message;
      client_ = *c;
    });
    run_until([this] { return server_ && client_; });
  }

  void run_until(const std::function<bool()>& done) { manta::testing::run_until(io_, done); }

  asio::io_context io_;
  std::unique_ptr<FrameListener> listener_;
  FrameConnectionPtr server_, client_;
};

TEST_P(FrameConnectionTest, CarriesFramesInOrderBothWays) {
  open();
  std::vector<std::string> at_server, at_client;
  server_->start(
      [&](Frame&& f) {
        at_server.push_back(f.payload);
        server_->send(FrameKind::kOutputs, f.epoch, f.payload + "!");
      },
      [](const Error&) {});
  client_->start([&](Frame&& f) { at_client.push_back(f.payload); }, [](const Error&) {});
  std::vector<std::string> sent, answered;
  for (int i = 0; i < 500; ++i) {
    sent.push_back(std::string(i * 11, 'x') + std::to_string(i));
    answered.push_back(sent.back() + "!");
    client_->send(FrameKind::kSubmit, Epoch{3}, sent.back());
  }
  run_until([&] { return at_client.size() == sent.size(); });
  EXPECT_EQ(at_server, sent);
  EXPECT_EQ(at_client, answered);
  EXPECT_EQ(client_->queued_bytes(), 0u);
}

TEST_P(FrameConnectionTest, SeesAPeerThatCloses) {
  open();
  std::string why;
  server_->start([](Frame&&) {}, [&](const Error& e) { why = e.message; });
  client_->start([](Frame&&) {}, [](const Error&) {});
  client_->close("done");
  run_until([&] { return !why.empty(); });
}

TEST_P(FrameConnectionTest, FinishSendsWhatIsQueuedFirst) {
  open();
  std::vector<std::string> got;
  bool closed = false;
  server_->start([&](Frame&& f) { got.push_back(f.payload); }, [&](const Error&) { closed = true; });
  client_->start([](Frame&&) {}, [](const Error&) {});
  client_->send(FrameKind::kOutputs, Epoch{}, std::string(1 << 20, 'a'));
  client_->send(FrameKind::kOutputs, Epoch{}, "last");
  client_->finish("leaving");
  run_until([&] { return closed; });
  ASSERT_EQ(got.size(), 2u);
  EXPECT_EQ(got[1], "last");
}

TEST_P(FrameConnectionTest, CutsOffAPeerThatDoesNotRead) {
  open();
  std::string why;
  client_->start([](Frame&&) {}, [&](const Error& e) { why = e.message; });
  const std::string chunk(1 << 20, 'z');
  for (size_t i = 0; i <= (kMaxQueuedBytes >> 20); ++i) client_->send(FrameKind::kOutputs, Epoch{}, chunk);
  run_until([&] { return !why.empty(); });
  EXPECT_NE(why.find("peer does not read"), std::string::npos) << why;
  EXPECT_EQ(client_->queued_bytes(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Both, FrameConnectionTest, ::testing::Values("unix", "tcp"));

TEST(FrameAddress, ErrorsNameTheAddress) {
  asio::io_context io;
  const auto refused = [&](const std::string& address) {
    return listen_frames(io, address, [](FrameConnectionPtr) {}).error().message;
  };
  EXPECT_EQ(refused("localhost:80"), "address \"localhost:80\": must start with unix: or tcp:");
  EXPECT_EQ(refused("tcp:localhost"), "address \"localhost\": expected host:port, port 0 to 65535");
  EXPECT_EQ(refused("tcp:localhost:70000"), "address \"localhost:70000\": expected host:port, port 0 to 65535");
  EXPECT_NE(refused("unix:@" + std::string(200, 'a')).find("must have 1 to 107 characters"), std::string::npos);
}

// The name server answers when the loop has run on, and not before.
TEST(FrameConnectionName, ALookupDoesNotHoldUpTheLoop) {
  asio::io_context io;
  Result<FrameConnectionPtr> answer = error(ErrorCode::kInternal, "none yet");
  FrameConnectionPtr server;
  auto listener = listen_frames(io, "tcp:127.0.0.1:0", [&](FrameConnectionPtr c) { server = std::move(c); });
  ASSERT_TRUE(listener.ok()) << listener.error().message;
  const std::string address = (*listener)->address();
  std::promise<void> may_answer;
  slow_name_may_answer = may_answer.get_future();
  bool done = false;
  connect_frames(io, "tcp:" + std::string(kSlowName) + address.substr(address.rfind(':')),
                 [&](Result<FrameConnectionPtr> c) {
                   answer = std::move(c);
                   done = true;
                 });
  asio::post(io, [&] { may_answer.set_value(); });
  manta::testing::run_until(io, [&] { return done && server; });
  EXPECT_TRUE(answer.ok()) << answer.error().message;
}

}  // namespace
}  // namespace manta
