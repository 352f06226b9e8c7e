#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"
#include "cluster/launch/command_line.h"
#include "manta/commands.h"
#include "manta/deployment.h"
#include "manta/ready.h"
#include "manta/start_table.h"
#include "manta/stop_signals.h"
#include "manta/up_plan.h"

namespace manta {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;
constexpr const char* kRouter = "router";

// A deployment per role and the router before them, in the foreground until asked to stop.
class Up {
 public:
  Up(UpPlan plan, std::optional<std::string> ready_file)
      : plan_(std::move(plan)),
        table_(stderr),
        start_timer_(io_),
        signals_(
            io_, [this] { stop(0); }, [this] { leave(); }) {
    plan_.router.ready_file = std::move(ready_file);
  }

  int run() {
    const Status started = start();
    if (!started.ok()) {
      spdlog::error("{}", started.error().message);
      return 1;
    }
    io_.run();
    return exit_code_;
  }

 private:
  struct Role {
    cluster::RolePlan plan;
    std::unique_ptr<Deployment> deployment;
  };

  Status start();
  std::unique_ptr<Deployment> make_deployment(Role& role);
  Status start_router();
  void watch_router();
  void on_router_status(const std::string& json_line);
  void tell_when_ready();
  void print_ready() const;
  void stop(int exit_code);
  void stop_roles();
  void leave();
  void give_up(const Error& e) {
    spdlog::error("{}; stopping", e.message);
    stop(1);
  }

  UpPlan plan_;
  boost::asio::io_context io_;
  StartTable table_;
  boost::asio::steady_timer start_timer_;
  StopSignals signals_;
  std::vector<std::unique_ptr<Role>> roles_;
  std::unique_ptr<cluster::Supervisor> router_;
  std::string url_;  // of the router, while it is ready
  size_t num_stopped_ = 0;
  const Clock::time_point started_ = Clock::now();
  bool announced_ = false;
  bool stopping_ = false;
  int exit_code_ = 0;
};

Status Up::start() {
  for (auto& plan : plan_.roles) {
    auto& role = *roles_.emplace_back(std::make_unique<Role>(Role{plan, nullptr}));
    role.deployment = make_deployment(role);
    auto& endpoints = plan.config.role == "prefill" ? plan_.router.prefill_endpoints : plan_.router.decode_endpoints;
    endpoints.push_back(role.deployment->coordinator());
    for (const auto& name : role.deployment->children()) table_.add(name);
  }
  table_.add(kRouter);
  for (const auto& role : roles_) MANTA_TRY(role->deployment->start());
  MANTA_TRY(start_router());
  watch_router();
  return {};
}

std::unique_ptr<Deployment> Up::make_deployment(Role& role) {
  DeploymentEvents events;
  events.on_ready = [this] { tell_when_ready(); };
  events.on_give_up = [this](const Error& e) { give_up(e); };
  events.on_stage = [this](const std::string& child, const std::string& stage) { table_.set(child, stage); };
  events.on_output = [this](const std::string& line) { table_.print_line(line); };
  DeploymentOptions options{.role = role.plan.config.role,
                            .settings = role.plan.settings,
                            .env = role.plan.config.env_vars,
                            .capture_output = table_.on_terminal()};
  return std::make_unique<Deployment>(io_, std::move(options), std::move(events));
}

Status Up::start_router() {
  cluster::SupervisorEvents events;
  events.on_status = [this](const std::string&, const std::string& line) { on_router_status(line); };
  events.on_started = [this](const std::string&, pid_t) {
    url_.clear();
    table_.set(kRouter, "starting");
  };
  events.on_give_up = [this](const Error& e) { give_up(e); };
  events.on_output = [this](const std::string& line) { table_.print_line(line); };
  router_ = std::make_unique<cluster::Supervisor>(io_, std::move(events));
  cluster::ChildPlan child;
  child.name = kRouter;
  child.command.args = {"router", "--child"};
  child.command.settings = to_json(plan_.router);
  child.command.capture_output = table_.on_terminal();
  return router_->start(std::move(child));
}

// The deployments watch their own start.
void Up::watch_router() {
  const auto patience = std::chrono::seconds(plan_.router.engine_ready_timeout_s);
  start_timer_.expires_after(patience);
  start_timer_.async_wait([this, patience](boost::system::error_code ec) {
    if (ec || stopping_) return;
    give_up({ErrorCode::kDeadlineExceeded,
             fmt::format("the router is not ready after {} s (engine_ready_timeout_s)", patience.count())});
  });
}

void Up::on_router_status(const std::string& json_line) {
  const json line = json::parse(json_line, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object() || line.value("event", "") != "ready") return;
  url_ = line.value("text", "");
  table_.set(kRouter, "ready");
  tell_when_ready();
}

void Up::tell_when_ready() {
  if (stopping_ || url_.empty()) return;
  for (const auto& role : roles_) {
    if (!role->deployment->ready()) return;
  }
  start_timer_.cancel();
  if (std::exchange(announced_, true)) {
    spdlog::info("all processes are ready again");
    return;
  }
  table_.close();
  const Status written = write_ready_file(plan_.router, url_);
  if (!written.ok()) return give_up(written.error());
  print_ready();
}

void Up::print_ready() const {
  const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
  const std::string& model = plan_.router.served_model_name.front();
  fmt::print("\nmanta {} serves {} after {:.2f} s\n", MANTA_VERSION, model, seconds);
  for (const auto& role : roles_) {
    const json engine = json::parse(role->deployment->engine_summary(), nullptr, false);
    fmt::print("  {:<12} {} x {}, {} blocks of {} tokens each\n", role->plan.config.role,
               role->plan.settings.data_parallel_size, engine.value("device", "?"), engine.value("num_blocks", 0),
               engine.value("block_size", 0));
  }
  print_api(url_, model);
}

// First the router stops admitting and its streams end; then nobody is left who could ask the roles for anything.
void Up::stop(int exit_code) {
  if (std::exchange(stopping_, true)) return;
  exit_code_ = exit_code;
  start_timer_.cancel();
  table_.close();
  using std::chrono::milliseconds;
  const int64_t timeout = plan_.router.shutdown_timeout;
  milliseconds patience = timeout > 0 ? milliseconds(1000 * timeout + 5000) : std::chrono::hours(24);
  if (exit_code != 0) patience = milliseconds(5000);
  if (router_) {
    router_->stop(patience, [this] { stop_roles(); });
  } else {
    stop_roles();
  }
}

void Up::stop_roles() {
  for (const auto& role : roles_) {
    role->deployment->stop(exit_code_ != 0, [this] {
      if (++num_stopped_ < roles_.size()) return;
      spdlog::info("all processes have ended");
      io_.stop();
    });
  }
}

void Up::leave() {
  router_ = nullptr;  // kills it; the deployments their processes
  roles_.clear();
  exit_code_ = 1;
  io_.stop();
}

// The same processes as commands for who starts them one by one: each role's coordinator on a port of its own, counted
// from data_parallel_rpc_port, where its ranks and the router find it.
json commands(UpPlan plan) {
  json out = json::array();
  const auto add = [&out](const std::string& name, std::vector<std::string> command, const EnvMap& env) {
    command.insert(command.begin(), "manta");
    out.push_back({{"name", name}, {"command", std::move(command)}, {"env", env}});
  };
  int64_t next_port = plan.roles.front().settings.data_parallel_rpc_port;
  for (auto& [config, settings] : plan.roles) {
    const std::string coordinator = fmt::format("tcp:127.0.0.1:{}", next_port++);
    settings.coordinator = coordinator;
    (config.role == "prefill" ? plan.router.prefill_endpoints : plan.router.decode_endpoints).push_back(coordinator);
    add(config.role + " coordinator", {"coordinator", "--listen", coordinator}, {});
    std::vector<std::string> serve = cluster::command_line(settings);
    serve.insert(serve.begin(), "serve");
    add(config.role, std::move(serve), config.env_vars);
  }
  std::vector<std::string> router = cluster::command_line(plan.router);
  router.insert(router.begin(), "router");
  add("router", std::move(router), {});
  return {{"processes", std::move(out)}};
}

struct Options {
  UpOptions up;
  bool print_commands = false;
  std::optional<std::string> ready_file;
};

void add_options(CLI::App& app, Options& o) {
  app.add_option("FILE", o.up.file, "a pd.yaml: prefill, decode and front door, the schema of Ray Serve's LLM apps")
      ->required();
  app.add_option("--model", o.up.model, "checkpoint folder or Hub id, instead of the file's model_source");
  app.add_option("--host", o.up.host, "address of the router; not given: all interfaces");
  app.add_option("--port", o.up.port, "port of the router; 0: any free one. Not given: the file's, else 8000")
      ->check(CLI::Range(0, 65535));
  app.add_flag("--scale-to-fit", o.up.scale_to_fit,
               "shrink what this machine or the model cannot hold, and print it; without this it is an error");
  app.add_flag("--print-commands", o.print_commands,
               "start nothing; print, as JSON, the command and environment of every process, to start them by hand");
  app.add_option("--ready-file", o.ready_file, "gets a JSON object with url and pid once everything is ready");
  app.add_option("--log-level", o.up.log_level, "of all processes")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "critical", "off"}));
}

}  // namespace

int run_up(const Args& args) {
  Options options;
  CLI::App app("prefill, decode and router of a pd.yaml on this machine, without Ray", "manta up");
  add_options(app, options);
  Args reversed(args.rbegin(), args.rend());  // CLI11 takes them from the back
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return 0;
  } catch (const CLI::ParseError& e) {
    fmt::print(stderr, "manta up: {}\n", e.what());
    return 2;
  }
  init_logging("up", options.up.log_level.value_or("info"));
  auto plan = make_up_plan(options.up, read_environment());
  if (!plan.ok()) {
    fmt::print(stderr, "manta up: {}\n", plan.error().message);
    return 2;
  }
  for (const auto& note : plan->notes) spdlog::info("{}", note);
  for (const auto& fitted : plan->fitted) fmt::print(stderr, "{}\n", to_string(fitted));
  for (const auto& role : plan->roles) warn_of_meaningless_outputs(role.settings, role.config.role);
  if (options.print_commands) {
    fmt::print("{}\n", commands(std::move(plan).value()).dump(2));
    return 0;
  }
  return Up(std::move(plan).value(), std::move(options.ready_file)).run();
}

}  // namespace manta
