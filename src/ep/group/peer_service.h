// The thread beside the steps: takes connections, answers the peers of the current group and those of other epochs,
// sees who closes, and moves tcp bytes. It sleeps in poll() and touches no row that the thread of the steps waits for
// over shared memory.
#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "ep/group/group.h"
#include "ep/group/handshake.h"

namespace manta::ep {

class PeerService {
 public:
  struct Options {
    bool listen_unix = true;
    bool listen_tcp = true;
    std::string interface;
  };
  static Result<std::unique_ptr<PeerService>> start(const Options& options);
  ~PeerService();

  const ListenAddress& address() const { return address_; }

  // From now on peers of this group are let in and served; null: of none. The one before is let go.
  void serve(std::shared_ptr<Group> group);
  // Connects to the ranks below this one and waits for those above. `group` is the one that is served.
  Status connect(Group& group, std::chrono::steady_clock::time_point deadline);
  // Peers of lower epochs are told about this one.
  void set_current_epoch(Epoch epoch);
  void wake();

 private:
  struct Visitor;

  PeerService() = default;
  Status listen_unix();
  Status listen_tcp(const std::string& interface);
  void run();
  void collect(std::vector<pollfd>& fds);
  void handle(const std::vector<pollfd>& fds);
  void accept_from(Fd& listener, bool is_unix);
  bool read_hello(Visitor& visitor);
  bool answer(Visitor& visitor);
  bool welcome(Visitor& visitor, Answer& out);
  void serve_peer(int rank, short events);

  ListenAddress address_;
  Fd unix_listener_, tcp_listener_, wake_;

  std::mutex mutex_;
  std::shared_ptr<Group> group_;
  uint64_t generation_ = 0;  // counts serve(): what was polled may be gone
  Epoch current_;
  std::vector<std::unique_ptr<Visitor>> visitors_;
  std::chrono::steady_clock::time_point accept_again_{};
  std::atomic<bool> stopping_{false};

  std::thread thread_;
};

}  // namespace manta::ep
