#include "manta/deployment.h"

#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "base/log.h"
#include "manta/engine_parts.h"

namespace manta {
namespace {

using nlohmann::json;

// Draining ends by itself when shutdown_timeout is 0 (wait for the streams); this only guards against a stuck child.
constexpr std::chrono::hours kNoTimeout{24};
// Children are asked to stop in this order: first nobody new comes in, then the work ends, then the group.
enum StopOrder { kStopApi = 0, kStopEngines = 1, kStopCoordinator = 2 };

std::string draw_prefix() {
  std::random_device random;
  return fmt::format("unix:@manta-{}-{:08x}", ::getpid(), random());
}

}  // namespace

Deployment::Deployment(boost::asio::io_context& io, DeploymentOptions options, DeploymentEvents events)
    : io_(io),
      options_(std::move(options)),
      events_(std::move(events)),
      prefix_(draw_prefix()),
      coordinator_(prefix_ + "-coordinator"),
      start_timer_(io) {}

Status Deployment::start() {
  cluster::SupervisorEvents events;
  events.on_status = [this](const std::string& name, const std::string& line) { on_status(name, line); };
  events.on_started = [this](const std::string& name, pid_t) {
    ready_.erase(name);
    tell_stage(name, "starting");
  };
  events.on_give_up = [this](const Error& e) { events_.on_give_up(e); };
  supervisor_ = std::make_unique<cluster::Supervisor>(io_, std::move(events));
  const std::string& role = options_.role;
  MANTA_TRY(start_child("coordinator", {"coordinator", "--role", role, "--listen", coordinator_}, kStopCoordinator));
  for (int rank = 0; rank < settings().data_parallel_size; ++rank) {
    MANTA_TRY(start_child(fmt::format("engine {}", rank),
                          {"engine", "--role", role, "--rank", std::to_string(rank), "--listen",
                           fmt::format("{}-engine-{}", prefix_, rank), "--coordinator", coordinator_},
                          kStopEngines));
  }
  MANTA_TRY(start_child("api", {"api", "--role", role, "--coordinator", coordinator_}, kStopApi));
  follow_membership();
  watch_start();
  return {};
}

std::string Deployment::full_name(const std::string& child) const {
  return options_.role == "mixed" ? child : options_.role + " " + child;
}

Status Deployment::start_child(const std::string& name, std::vector<std::string> args, int stop_order) {
  cluster::ChildPlan plan;
  plan.name = full_name(name);
  plan.command.args = std::move(args);
  plan.command.settings = to_json(settings());
  plan.command.env = options_.env;
  plan.stop_order = stop_order;
  children_.push_back(plan.name);
  return supervisor_->start(std::move(plan));
}

// The coordinator sees a rank that is alive but stuck; only its parent can do something about it.
void Deployment::follow_membership() {
  cluster::LinkOptions link;
  link.coordinator = coordinator_;
  link.join.self.role = cluster::Role::kSupervisor;
  link.join.self.pid = ::getpid();
  link.join.self.host = host_name();
  link.heartbeat = [] {
    cluster::Heartbeat beat;
    beat.state = cluster::State::kReady;
    return beat;
  };
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
  start_timer_.expires_after(std::chrono::seconds(settings().engine_ready_timeout_s));
  start_timer_.async_wait([this](boost::system::error_code ec) {
    if (ec || stopping_) return;
    std::string missing;
    for (const auto& name : children_) {
      if (!ready_.contains(name)) missing += (missing.empty() ? "" : ", ") + name;
    }
    events_.on_give_up({ErrorCode::kDeadlineExceeded, fmt::format("not ready after {} s (engine_ready_timeout_s): {}",
                                                                  settings().engine_ready_timeout_s, missing)});
  });
}

void Deployment::on_status(const std::string& name, const std::string& json_line) {
  const json line = json::parse(json_line, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) return;
  const std::string event = line.value("event", "");
  const std::string text = line.value("text", "");
  if (event == "progress") tell_stage(name, text);
  if (event != "ready") return;
  ready_[name] = text;
  tell_stage(name, "ready");
  if (ready_.size() < children_.size()) return;
  start_timer_.cancel();
  events_.on_ready();
}

void Deployment::tell_stage(const std::string& name, const std::string& stage) {
  if (events_.on_stage) events_.on_stage(name, stage);
}

void Deployment::stop(bool failed, std::function<void()> done) {
  if (std::exchange(stopping_, true)) return;
  start_timer_.cancel();
  link_ = nullptr;
  using std::chrono::milliseconds;
  milliseconds patience = settings().shutdown_timeout > 0 ? milliseconds(1000 * settings().shutdown_timeout + 5000)
                                                          : std::chrono::duration_cast<milliseconds>(kNoTimeout);
  if (failed) patience = milliseconds(5000);
  supervisor_->stop(patience, std::move(done));
}

}  // namespace manta
