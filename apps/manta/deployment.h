// One deployment on this node, or this node's part of one over several: a coordinator, the DP ranks, the api process;
// started in order, supervised, drained.
// Its owner runs the loop, takes the signals and tells people: `manta serve` has one deployment, `manta up` several.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/settings.h"
#include "cluster/link.h"
#include "cluster/node_plan.h"
#include "cluster/supervisor.h"

namespace manta {

struct DeploymentOptions {
  std::string role = "mixed";  // prefill, decode or mixed
  Settings settings;
  EnvMap env;                   // of its processes, on top of this process's own
  bool capture_output = false;  // to on_output, by line
};

struct DeploymentEvents {
  std::function<void()> on_ready;                // all processes are ready; again when that is so after a restart
  std::function<void(const Error&)> on_give_up;  // once; the owner should stop()
  std::function<void(const std::string& line)> on_output;
  // What a child says of itself: "starting", a stage of its loading, "ready", "restarting".
  std::function<void(const std::string& child, const std::string& stage)> on_stage;
  std::function<void()> on_head_leaves;  // the node that this one cannot work without drains; the owner should stop()
};

class Deployment {
 public:
  Deployment(boost::asio::io_context& io, DeploymentOptions options, DeploymentEvents events);

  Status start();
  // Drains; done runs when all processes have ended. failed: nothing worth waiting for.
  void stop(bool failed, std::function<void()> done);

  const Settings& settings() const { return options_.settings; }
  const cluster::NodePlan& plan() const { return plan_; }
  const std::string& coordinator() const { return coordinator_; }  // address
  bool ready() const { return joined_ && ready_.size() == children_.size(); }
  const std::vector<std::string>& children() const { return children_; }  // names, as on_stage has them
  // Once ready.
  std::string url() const;             // empty: no API here
  std::string engine_summary() const;  // JSON, see engine_parts.h; "{}": no engine here

 private:
  std::string full_name(const std::string& child) const;
  std::string head_host() const;
  Status find_addresses();
  Status start_engines_and_api();
  Result<std::string> relay_address() const;
  Status start_child(const std::string& name, std::vector<std::string> args, int stop_order);
  void follow_membership();
  void tell_of_coordinator(bool silent) const;
  void on_membership(const cluster::Membership& membership);
  void watch_start();
  void on_status(const std::string& name, const std::string& json_line);
  void tell_stage(const std::string& name, const std::string& stage);

  boost::asio::io_context& io_;
  DeploymentOptions options_;  // settings: with what this node was found to be
  DeploymentEvents events_;
  const cluster::NodePlan plan_;
  const std::string prefix_;       // of this deployment's socket names
  const std::string coordinator_;  // address
  pid_t coordinator_pid_ = 0;      // where this process starts it
  std::string engine_host_;        // where engines listen for another node's API; empty: on unix sockets
  boost::asio::steady_timer start_timer_;
  std::unique_ptr<cluster::Supervisor> supervisor_;
  std::unique_ptr<cluster::Link> link_;
  std::map<std::string, std::string> ready_;  // by child: what it said when it became ready
  std::vector<std::string> children_;
  bool joined_ = false;  // the coordinator knows this node
  bool stopping_ = false;
};

}  // namespace manta
