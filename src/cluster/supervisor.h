// Keeps a deployment's processes alive: restarts what dies, gives up when restarting does not help, stops everything
// in order. Runs on one io_context, on the process's main thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "cluster/child.h"

namespace boost::asio {
class io_context;
}

namespace manta::cluster {

// A child that ends with this code found its configuration wrong: starting it again would not help.
inline constexpr int kExitBadConfiguration = 2;

struct ChildPlan {
  std::string name;  // "engine decode 3", unique
  ChildCommand command;
  int stop_order = 0;  // children of a lower number drain and end before the next number is asked to
};

struct SupervisorEvents {
  std::function<void(const std::string& name, const std::string& json_line)> on_status;
  std::function<void(const std::string& line)> on_output;              // of children whose output is captured
  std::function<void(const std::string& name, pid_t pid)> on_started;  // again after each restart
  std::function<void(const Error&)> on_give_up;                        // once; the owner should stop()
};

// A child may die this often within kRestartWindow before its supervisor gives up.
inline constexpr int kMaxRestarts = 8;
inline constexpr std::chrono::seconds kRestartWindow{60};

class Supervisor {
 public:
  Supervisor(boost::asio::io_context& io, SupervisorEvents events);
  ~Supervisor();  // kills what still runs
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  Status start(ChildPlan plan);
  // SIGTERM, in stop_order; whoever has not ended `patience` later is killed. done runs when all are gone.
  void stop(std::chrono::milliseconds patience, std::function<void()> done);
  // The deployment goes on without this child, for the reason `why` (Departure::why): kill it if it still runs; it is
  // restarted like one that died. False when no child has this pid.
  bool put_out(pid_t pid, const std::string& why);

 private:
  class Core;
  std::shared_ptr<Core> core_;
};

}  // namespace manta::cluster
