#include "manta/deployment.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/log.h"
#include "manta/engine_parts.h"

namespace manta {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Draining ends by itself when shutdown_timeout is 0 (wait for the streams); this only guards against a stuck child.
constexpr std::chrono::hours kNoTimeout{24};
// Children are asked to stop in this order: first nobody new comes in, then the work ends, then the group.
enum StopOrder { kStopApi = 0, kStopEngines = 1, kStopCoordinator = 2 };

std::string draw_prefix() {
  std::random_device random;
  return fmt::format("unix:@manta-{}-{:08x}", ::getpid(), random());
}

}  // namespace

Deployment::Deployment(Settings settings)
    : settings_(std::move(settings)),
      prefix_(draw_prefix()),
      coordinator_(prefix_ + "-coordinator"),
      signals_(io_, SIGINT, SIGTERM),
      start_timer_(io_),
      started_(Clock::now()) {}

int Deployment::run() {
  std::signal(SIGPIPE, SIG_IGN);
  signals_.async_wait([this](boost::system::error_code ec, int signal) {
    if (!ec) on_signal(signal);
  });
  cluster::SupervisorEvents events;
  events.on_status = [this](const std::string& name, const std::string& line) { on_status(name, line); };
  events.on_started = [this](const std::string& name, pid_t) { ready_.erase(name); };
  events.on_give_up = [this](const Error& e) {
    spdlog::error("{}; stopping", e.message);
    stop(1);
  };
  supervisor_ = std::make_unique<cluster::Supervisor>(io_, std::move(events));
  const Status started = start_children();
  if (!started.ok()) {
    spdlog::error("{}", started.error().message);
    return 1;
  }
  follow_membership();
  watch_start();
  io_.run();
  return exit_code_;
}

Status Deployment::start_children() {
  MANTA_TRY(start_child("coordinator", {"coordinator", "--listen", coordinator_}, kStopCoordinator));
  for (int rank = 0; rank < settings_.data_parallel_size; ++rank) {
    MANTA_TRY(start_child(fmt::format("engine {}", rank),
                          {"engine", "--role", "mixed", "--rank", std::to_string(rank), "--listen",
                           fmt::format("{}-engine-{}", prefix_, rank), "--coordinator", coordinator_},
                          kStopEngines));
  }
  return start_child("api", {"api", "--coordinator", coordinator_}, kStopApi);
}

Status Deployment::start_child(const std::string& name, std::vector<std::string> args, int stop_order) {
  cluster::ChildPlan plan;
  plan.name = name;
  plan.command.args = std::move(args);
  plan.command.settings = to_json(settings_);
  plan.stop_order = stop_order;
  children_.push_back(name);
  return supervisor_->start(std::move(plan));
}

// The coordinator sees a rank that is alive but stuck; only its parent can do something about it.
void Deployment::follow_membership() {
  cluster::LinkOptions link;
  link.coordinator = coordinator_;
  link.join.self.role = cluster::Role::kSupervisor;
  link.join.self.pid = ::getpid();
  link.join.self.host = host_name();
  link.heartbeat = [] { return cluster::Heartbeat{cluster::State::kReady, {}, 0, 0}; };
  link.on_membership = [this](Epoch, const cluster::Membership& membership) {
    if (stopping_) return;
    for (const auto& departure : membership.departures) {
      if (departure.host == host_name() && departure.role == cluster::Role::kEngine) {
        supervisor_->put_out(departure.pid);
      }
    }
  };
  link.on_refused = [](const std::string& reason) { spdlog::error("coordinator refused: {}", reason); };
  link_ = std::make_unique<cluster::Link>(io_, std::move(link));
}

// A start that hangs must not hang in silence: after engine_ready_timeout_s it is named and given up.
void Deployment::watch_start() {
  start_timer_.expires_after(std::chrono::seconds(settings_.engine_ready_timeout_s));
  start_timer_.async_wait([this](boost::system::error_code ec) {
    if (ec || stopping_) return;
    std::string missing;
    for (const auto& name : children_) {
      if (!ready_.contains(name)) missing += (missing.empty() ? "" : ", ") + name;
    }
    spdlog::error("not ready after {} s (engine_ready_timeout_s): {}; stopping", settings_.engine_ready_timeout_s,
                  missing);
    stop(1);
  });
}

void Deployment::on_status(const std::string& name, const std::string& json_line) {
  const json line = json::parse(json_line, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) return;
  const std::string event = line.value("event", "");
  const std::string text = line.value("text", "");
  if (event != "ready") return;
  ready_[name] = text;
  if (ready_.size() == children_.size()) print_ready();
}

void Deployment::print_ready() {
  start_timer_.cancel();
  if (std::exchange(announced_, true)) {
    spdlog::info("all processes are ready again");
    return;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
  const std::string url = ready_.at("api");
  write_ready_file(url);
  fmt::print("\nmanta {} serves {} after {:.2f} s\n", MANTA_VERSION, settings_.model, seconds);
  const json engine = json::parse(ready_.at("engine 0"), nullptr, false);
  fmt::print("  engines      {} x {}\n", settings_.data_parallel_size, engine.value("device", "?"));
  fmt::print("  cache        {} blocks of {} tokens each\n", engine.value("num_blocks", 0),
             engine.value("block_size", 0));
  const json memory = engine.value("memory", json::object());
  for (const auto& [item, bytes] : memory.items()) {
    fmt::print("  memory       {:<12} {:>9.1f} MiB\n", item, bytes.get<double>() / (1 << 20));
  }
  const std::string model = settings_.served_model_name.empty() ? settings_.model : settings_.served_model_name[0];
  fmt::print("  API          {}/v1\n\ntry it:\n", url);
  fmt::print(
      "  curl -N {}/v1/chat/completions -H 'Content-Type: application/json' -d '{{\"model\": \"{}\", \"stream\": "
      "true, \"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'\n\n",
      url, model);
  std::fflush(stdout);
}

// Whoever waits for the file finds it whole: it is written beside it and renamed.
void Deployment::write_ready_file(const std::string& url) {
  if (!settings_.ready_file) return;
  const std::string& path = *settings_.ready_file;
  const std::string half = path + ".tmp";
  std::ofstream file(half);
  file << json{{"url", url}, {"pid", ::getpid()}}.dump() << '\n';
  file.close();
  if (!file || std::rename(half.c_str(), path.c_str()) != 0) {
    spdlog::error("--ready-file {}: cannot be written: {}; stopping", path, std::strerror(errno));
    stop(1);
  }
}

void Deployment::on_signal(int signal) {
  if (stopping_) {
    spdlog::warn("second signal: leaving without draining");
    supervisor_ = nullptr;  // kills the children
    exit_code_ = 1;
    io_.stop();
    return;
  }
  spdlog::info("{}: draining; once more to leave at once", signal == SIGINT ? "Ctrl-C" : "SIGTERM");
  signals_.async_wait([this](boost::system::error_code ec, int again) {
    if (!ec) on_signal(again);
  });
  stop(0);
}

void Deployment::stop(int exit_code) {
  if (std::exchange(stopping_, true)) return;
  exit_code_ = exit_code;
  link_ = nullptr;
  using std::chrono::milliseconds;
  milliseconds patience = settings_.shutdown_timeout > 0 ? milliseconds(1000 * settings_.shutdown_timeout + 5000)
                                                         : std::chrono::duration_cast<milliseconds>(kNoTimeout);
  if (exit_code != 0) patience = milliseconds(5000);  // nothing to finish for a deployment that failed
  supervisor_->stop(patience, [this] {
    spdlog::info("all processes have ended");
    io_.stop();
  });
}

}  // namespace manta
