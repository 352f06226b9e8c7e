// A coordinator in the test's process, and the api processes that a test announces to it.
#pragma once

#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cluster/coordinator.h"
#include "cluster/link.h"

namespace manta::router::testing {

// On a thread of its own.
class Cluster {
 public:
  Cluster() : address_(name("coordinator")) {
    coordinator_ = cluster::Coordinator::open(io_, address_, {}).value();
    thread_ = std::thread([this] { io_.run(); });
  }
  ~Cluster() {
    io_.stop();
    thread_.join();
    links_.clear();
  }

  const std::string& address() const { return address_; }
  static std::string name(const std::string& what) {
    static int serial = 0;
    return "unix:@manta-router-test-" + std::to_string(::getpid()) + "-" + std::to_string(++serial) + "-" + what;
  }
  void announce(const std::string& relay_address) {
    boost::asio::post(io_, [this, relay_address] {
      cluster::LinkOptions link;
      link.coordinator = address_;
      link.join.self.role = cluster::Role::kApi;
      link.join.self.address = relay_address;
      link.heartbeat = [] { return cluster::Heartbeat{cluster::State::kReady, {}, 0, 0}; };
      link.on_membership = [](Epoch, const cluster::Membership&) {};
      link.on_refused = [](const std::string&) {};
      links_.push_back(std::make_unique<cluster::Link>(io_, std::move(link)));
    });
  }

 private:
  const std::string address_;
  boost::asio::io_context io_;
  std::unique_ptr<cluster::Coordinator> coordinator_;
  std::vector<std::unique_ptr<cluster::Link>> links_;
  std::thread thread_;
};

}  // namespace manta::router::testing
