// A member's line to the coordinator: joins, sends heartbeats, hears of membership, reconnects when the coordinator
// was restarted. Runs on the given io_context, which must not be the thread that can get stuck.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/ids.h"
#include "cluster/messages.h"

namespace boost::asio {
class io_context;
}

namespace manta::cluster {

struct LinkOptions {
  std::string coordinator;  // address
  Join join;
  std::function<Heartbeat()> heartbeat;  // asked every kHeartbeatPeriod
  std::function<void(Epoch, const Membership&)> on_membership;
  std::function<void(Epoch, const Decision&)> on_decision;    // ranks of a lock-step group only
  std::function<void(const std::string& reason)> on_refused;  // final: it does not try again
  // A coordinator that answers no heartbeat for this long, while this process ran: somebody should hear of it, and when
  // it answers again (false).
  std::chrono::milliseconds suspect{1000};
  std::function<void(bool silent)> on_suspect;  // may be empty
  // For this long: the connection is made anew.
  std::chrono::milliseconds deadline{5000};
  std::function<void()> on_silence;  // it happened; may be empty
};

class Link {
 public:
  Link(boost::asio::io_context& io, LinkOptions options);
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  void heartbeat_now();                      // the state changed: do not wait for the period
  void vote(Epoch epoch, const Vote& vote);  // of the group it was formed for; lost while there is no connection
  Epoch epoch() const;                       // of the last membership heard

 private:
  class Core;
  std::shared_ptr<Core> core_;
};

}  // namespace manta::cluster
