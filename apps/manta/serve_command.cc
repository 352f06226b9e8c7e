#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "backend/cuda_library.h"
#include "base/log.h"
#include "base/settings.h"
#include "manta/commands.h"
#include "manta/deployment.h"
#include "manta/model_source.h"
#include "manta/ready.h"
#include "manta/stop_signals.h"

namespace manta {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// The connector's role is the deployment's: it shows in the processes' names and logs.
std::string role_of(const Settings& settings) {
  const std::string kv_role = settings.kv_transfer_config.kv_role.value_or("kv_both");
  return kv_role == "kv_producer" ? "prefill" : kv_role == "kv_consumer" ? "decode" : "mixed";
}

// One deployment in the foreground, until it is asked to stop.
class Serve {
 public:
  explicit Serve(const Settings& settings)
      : signals_(
            io_, [this] { stop(0); }, [this] { leave(); }),
        deployment_(std::make_unique<Deployment>(
            io_, DeploymentOptions{.role = role_of(settings), .settings = settings}, events())) {}

  int run() {
    const Status started = deployment_->start();
    if (!started.ok()) {
      spdlog::error("{}", started.error().message);
      return 1;
    }
    io_.run();
    return exit_code_;
  }

 private:
  DeploymentEvents events() {
    DeploymentEvents events;
    events.on_ready = [this] { on_ready(); };
    events.on_give_up = [this](const Error& e) {
      spdlog::error("{}; stopping", e.message);
      stop(1);
    };
    events.on_head_leaves = [this] {
      spdlog::info("the head of this deployment drains: so does this node");
      stop(0);
    };
    return events;
  }

  void on_ready();
  void print_ready() const;

  void stop(int exit_code) {
    if (std::exchange(stopping_, true)) return;
    exit_code_ = exit_code;
    deployment_->stop(exit_code != 0, [this] {
      spdlog::info("all processes have ended");
      io_.stop();
    });
  }

  void leave() {
    deployment_ = nullptr;  // kills the children
    exit_code_ = 1;
    io_.stop();
  }

  boost::asio::io_context io_;
  StopSignals signals_;
  std::unique_ptr<Deployment> deployment_;
  const Clock::time_point started_ = Clock::now();
  bool announced_ = false;
  bool stopping_ = false;
  int exit_code_ = 0;
};

void Serve::on_ready() {
  if (std::exchange(announced_, true)) {
    spdlog::info("all processes are ready again");
    return;
  }
  const Status written = write_ready_file(deployment_->settings(), deployment_->url());
  if (!written.ok()) {
    spdlog::error("{}; stopping", written.error().message);
    stop(1);
    return;
  }
  print_ready();
}

void Serve::print_ready() const {
  const Settings& settings = deployment_->settings();
  const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
  fmt::print("\nmanta {} serves {} after {:.2f} s\n", MANTA_VERSION, settings.model, seconds);
  const json engine = json::parse(deployment_->engine_summary(), nullptr, false);
  const cluster::NodePlan& plan = deployment_->plan();
  if (plan.num_ranks > 0) {
    fmt::print("  engines      {} x {}\n", plan.num_ranks, engine.value("device", "?"));
  }
  if (plan.several_nodes) {
    fmt::print("  deployment   {} of {} ranks here, from {}; {} load balancing; coordinator {}\n", plan.num_ranks,
               settings.data_parallel_size, plan.first_rank, to_string(plan.balancing), deployment_->coordinator());
  }
  if (plan.num_ranks > 0)
    fmt::print("  cache        {} blocks of {} tokens each\n", engine.value("num_blocks", 0),
               engine.value("block_size", 0));
  const json memory = engine.value("memory", json::object());
  for (const auto& [item, bytes] : memory.items()) {
    fmt::print("  memory       {:<25} {:>9.1f} MiB\n", item, bytes.get<double>() / (1 << 20));
  }
  if (!plan.has_api) {
    fmt::print("  API          on the head's node\n\n");
    std::fflush(stdout);
    return;
  }
  print_api(deployment_->url(), settings.served_model_name.empty() ? settings.model : settings.served_model_name[0]);
}

}  // namespace

int run_serve(const Args& args) {
  const EnvMap env = read_environment();
  const auto parsed = parse_command_line(args, env);
  if (!parsed.ok()) {
    fmt::print(stderr, "manta serve: {}\n", parsed.error().message);
    return 2;
  }
  if (parsed->help) {
    fmt::print("{}", *parsed->help);
    return 0;
  }
  if (parsed->settings.model.empty()) {
    fmt::print(stderr,
               "manta serve: no MODEL: give a checkpoint folder or a Hub id, e.g. manta serve models/tiny-v3\n");
    return 2;
  }
  init_logging("serve", parsed->settings.log_level);
  for (const auto& note : parsed->notes) spdlog::info("{}", note);
  for (const auto& changed : changed_settings(*parsed)) spdlog::info("{}", changed);
  warn_of_meaningless_outputs(parsed->settings, "");
  if (parsed->settings.device == "cuda") {
    // Said once, here, rather than by every engine that then cannot start.
    if (const Status usable = backend::probe_cuda(); !usable.ok()) {
      spdlog::error("{}", usable.error().message);
      return 2;
    }
  }
  auto settings = with_local_model(parsed->settings, env);
  if (!settings.ok()) {
    spdlog::error("{}", settings.error().message);
    return 2;
  }
  return Serve(*settings).run();
}

}  // namespace manta
