#include "api/offload.h"

#include <gtest/gtest.h>

#include <boost/asio/post.hpp>
#include <future>
#include <thread>

namespace manta::api {
namespace {

class Client : public ResponseWriter {
 public:
  void send(HttpResponse) override {}
  void begin_stream(const std::vector<HttpHeader>&) override {}
  std::string& body() override { return body_; }
  void commit() override {}
  void end_stream() override {}
  void on_gone(std::function<void()>) override {}
  bool gone() const override { return is_gone; }
  bool is_gone = false;

 private:
  std::string body_;
};

struct OffloadTest : ::testing::Test {
  OffloadPool pool;
  boost::asio::io_context io{1};
  Offload offload{pool, io};
  std::shared_ptr<Client> client = std::make_shared<Client>();
  std::thread::id worked_on, ended_on;

  void run(
      size_t num_bytes, std::function<void()> work = [] {}) {
    offload.run(
        num_bytes, client,
        [this, work] {
          work();
          worked_on = std::this_thread::get_id();
        },
        [this] { ended_on = std::this_thread::get_id(); });
  }
};

TEST_F(OffloadTest, ShortWorkIsDoneHereAndNow) {
  run(Offload::kMinBytes - 1);
  EXPECT_EQ(worked_on, std::this_thread::get_id());
  EXPECT_EQ(ended_on, std::this_thread::get_id());
}

// The work cannot end before the loop has turned: the loop is what ends it.
TEST_F(OffloadTest, TheLoopTurnsWhileLongWorkIsDone) {
  std::promise<void> turned;
  run(Offload::kMinBytes, [&] { turned.get_future().wait(); });
  boost::asio::post(io, [&] { turned.set_value(); });
  io.run();  // the guard keeps it until then() has run
  EXPECT_NE(worked_on, std::thread::id());
  EXPECT_NE(worked_on, std::this_thread::get_id());
  EXPECT_EQ(ended_on, std::this_thread::get_id());
}

TEST_F(OffloadTest, NothingIsStartedForAClientThatHasGone) {
  std::promise<void> gone;
  run(Offload::kMinBytes, [&] { gone.get_future().wait(); });
  boost::asio::post(io, [&] {
    client->is_gone = true;
    gone.set_value();
  });
  io.run();
  EXPECT_NE(worked_on, std::thread::id());
  EXPECT_EQ(ended_on, std::thread::id());
}

}  // namespace
}  // namespace manta::api
