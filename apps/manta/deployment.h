// What `manta serve` runs on this node: a coordinator, the DP ranks, the api process; started in order, supervised,
// drained on SIGTERM or Ctrl-C.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/settings.h"
#include "cluster/link.h"
#include "cluster/supervisor.h"

namespace manta {

class Deployment {
 public:
  explicit Deployment(Settings settings);
  // Until asked to stop. Returns the process's exit code.
  int run();

 private:
  Status start_children();
  Status start_child(const std::string& name, std::vector<std::string> args, int stop_order);
  void follow_membership();
  void watch_start();
  void on_status(const std::string& name, const std::string& json_line);
  void on_signal(int signal);
  void stop(int exit_code);
  void print_ready();
  void write_ready_file(const std::string& url);

  Settings settings_;
  std::string prefix_;       // of this deployment's socket names
  std::string coordinator_;  // address
  boost::asio::io_context io_;
  boost::asio::signal_set signals_;
  boost::asio::steady_timer start_timer_;
  std::unique_ptr<cluster::Supervisor> supervisor_;
  std::unique_ptr<cluster::Link> link_;
  std::map<std::string, std::string> ready_;  // by child: what it said when it became ready
  std::vector<std::string> children_;
  std::chrono::steady_clock::time_point started_;
  bool announced_ = false;
  bool stopping_ = false;
  int exit_code_ = 0;
};

}  // namespace manta
