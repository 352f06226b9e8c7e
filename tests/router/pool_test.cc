// Which deployments a pool follows, when its list changes.
#include "router/pool.h"

#include <gtest/gtest.h>

#include "run_until.h"
#include "test_cluster.h"
#include "test_server.h"

namespace manta::router {
namespace {

using api::ApiServer;
using api::testing::FakeEngine;
using api::testing::finished;
using api::testing::test_settings;
using testing::Cluster;

struct Deployment {
  Deployment() {
    engine.set_restless();
    api = ApiServer::start(test_settings(), engine.factory(), address).value();
    cluster.announce(address);
  }
  const std::string address = Cluster::name("api");
  Cluster cluster;
  FakeEngine engine;
  std::unique_ptr<ApiServer> api;
};

struct Sink : StreamSink {
  void on_piece(const api::Piece& piece) override { ended = ended || piece.end; }
  void on_lost(const std::string&) override { lost = true; }
  bool ended = false, lost = false;
};

class PoolTest : public ::testing::Test {
 protected:
  void run_until(const std::function<bool()>& done) { manta::testing::run_until(io_, done); }

  std::unique_ptr<Deployment> old_ = std::make_unique<Deployment>();
  boost::asio::io_context io_;
  Pool pool_{io_, {.role = "decode", .coordinators = {old_->cluster.address()}, .process = "test"}, [] {}};
};

TEST_F(PoolTest, ADeploymentThatLeftTheListGoesWhenItsStreamsHaveEnded) {
  run_until([&] { return pool_.ready(); });
  Seat seat = pool_.choose({});
  ASSERT_TRUE(seat);
  Sink sink;
  seat.link().open({.method = "POST",
                    .path = "/v1/completions",
                    .headers = {{"Content-Type", "application/json"}},
                    .body = R"({"prompt": [5], "max_tokens": 4})"},
                   sink);
  run_until([&] { return old_->engine.num_submits() == 1; });
  Deployment next;
  pool_.set_coordinators({next.cluster.address()});
  EXPECT_FALSE(pool_.ready()) << "nothing new goes to the old one";
  ASSERT_EQ(pool_.processes().size(), 1u) << "what runs there runs on";
  run_until([&] { return pool_.ready(); });
  old_->engine.emit(old_->engine.wait_submit(0).id, finished(engine::FinishReason::kLength, {300}));
  run_until([&] { return sink.ended; });
  run_until([&] { return pool_.processes().size() == 1; });
  EXPECT_EQ(pool_.processes()[0]->address(), next.address);
  EXPECT_FALSE(sink.lost);
  EXPECT_EQ(seat.target()->num_in_flight, 1) << "a seat keeps what it counts on";
}

TEST_F(PoolTest, ADeadDeploymentGoesWithItsEntry) {
  run_until([&] { return pool_.ready(); });
  old_ = nullptr;
  run_until([&] { return !pool_.ready(); });
  EXPECT_EQ(pool_.processes().size(), 1u) << "it may come back";
  pool_.set_coordinators({});
  EXPECT_TRUE(pool_.processes().empty());
}

TEST_F(PoolTest, ADeploymentThatComesBackToTheListIsFollowedAgain) {
  run_until([&] { return pool_.ready(); });
  pool_.set_coordinators({});
  EXPECT_TRUE(pool_.processes().empty());
  pool_.set_coordinators({old_->cluster.address()});
  run_until([&] { return pool_.ready(); });
}

}  // namespace
}  // namespace manta::router
