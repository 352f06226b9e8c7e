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
      plan_(cluster::plan_node(options_.settings)),
      prefix_(draw_prefix()),
      coordinator_(plan_.coordinator.empty() ? prefix_ + "-coordinator" : plan_.coordinator),
      start_timer_(io) {
  options_.settings.data_parallel_size_local = plan_.num_ranks;  // children need not work it out again
  if (plan_.starts_coordinator) children_.push_back(full_name("coordinator"));
  for (int rank = plan_.first_rank; rank < plan_.first_rank + plan_.num_ranks; ++rank) {
    children_.push_back(full_name(fmt::format("engine {}", rank)));
  }
  if (plan_.has_api) children_.push_back(full_name("api"));
}

Status Deployment::start() {
  cluster::SupervisorEvents events;
  events.on_status = [this](const std::string& name, const std::string& line) { on_status(name, line); };
  events.on_output = events_.on_output;
  events.on_started = [this](const std::string& name, pid_t pid) {
    if (name == full_name("coordinator")) coordinator_pid_ = pid;
    ready_.erase(name);
    tell_stage(name, "starting");
  };
  events.on_give_up = [this](const Error& e) { events_.on_give_up(e); };
  supervisor_ = std::make_unique<cluster::Supervisor>(io_, std::move(events));
  MANTA_TRY(find_addresses());
  watch_start();
  if (plan_.starts_coordinator) {
    MANTA_TRY(start_child("coordinator", {"coordinator", "--role", options_.role, "--listen", coordinator_},
                          kStopCoordinator));
    MANTA_TRY(start_engines_and_api());
  }
  follow_membership();  // other nodes start their children once the head has taken them
  return {};
}

// Of a coordinator on TCP.
std::string Deployment::head_host() const {
  const std::string host = coordinator_.substr(4, coordinator_.rfind(':') - 4);
  return host.size() > 2 && host.front() == '[' ? host.substr(1, host.size() - 2) : host;
}

// Where the ranks of other nodes, and the API of the head, find this node's.
Status Deployment::find_addresses() {
  Settings& s = options_.settings;
  if (!plan_.several_nodes || !coordinator_.starts_with("tcp:")) return {};
  if (s.host_ip) {
    engine_host_ = *s.host_ip;
  } else if (s.socket_ifname) {
    MANTA_ASSIGN(engine_host_, cluster::address_of_interface(*s.socket_ifname));
  } else {
    MANTA_ASSIGN(engine_host_, cluster::local_address_towards(head_host()));
  }
  if (!s.socket_ifname && s.enable_expert_parallel) {
    MANTA_ASSIGN(s.socket_ifname, cluster::interface_of_address(engine_host_));
  }
  const std::string here = plan_.num_ranks > 0
                               ? fmt::format("ranks {} to {}", plan_.first_rank, plan_.first_rank + plan_.num_ranks - 1)
                               : std::string("no rank");
  spdlog::info("{} load balancing, {} of {} here, coordinator {}, this node {}", to_string(plan_.balancing), here,
               s.data_parallel_size, coordinator_, engine_host_);
  if (!plan_.engines_on_tcp) engine_host_.clear();
  return {};
}

Status Deployment::start_engines_and_api() {
  joined_ = true;
  const std::string& role = options_.role;
  for (int rank = plan_.first_rank; rank < plan_.first_rank + plan_.num_ranks; ++rank) {
    std::string listen = fmt::format("{}-engine-{}", prefix_, rank);
    if (!engine_host_.empty()) listen = fmt::format("tcp:{}:0", cluster::bracketed(engine_host_));
    MANTA_TRY(start_child(
        fmt::format("engine {}", rank),
        {"engine", "--role", role, "--rank", std::to_string(rank), "--listen", listen, "--coordinator", coordinator_},
        kStopEngines));
  }
  if (!plan_.has_api) return {};
  MANTA_ASSIGN(const std::string listen, relay_address());
  return start_child("api", {"api", "--role", role, "--listen", listen, "--coordinator", coordinator_}, kStopApi);
}

// Where routers find the API: those who reach a coordinator over TCP may be on another node.
Result<std::string> Deployment::relay_address() const {
  if (!coordinator_.starts_with("tcp:")) return prefix_ + "-api";
  std::string host = engine_host_;
  if (host.empty()) {
    MANTA_ASSIGN(host, cluster::local_address_towards(head_host()));
  }
  return fmt::format("tcp:{}:0", cluster::bracketed(host));
}

std::string Deployment::url() const {
  return plan_.has_api ? ready_.at(full_name("api")) : "";
}

std::string Deployment::engine_summary() const {
  return plan_.num_ranks > 0 ? ready_.at(full_name(fmt::format("engine {}", plan_.first_rank))) : "{}";
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
  plan.command.capture_output = options_.capture_output;
  plan.stop_order = stop_order;
  return supervisor_->start(std::move(plan));
}

// The coordinator sees a rank or an api process that is alive but stuck, and this process a stuck coordinator; only
// their parent can do something about it.
void Deployment::follow_membership() {
  cluster::LinkOptions link;
  link.coordinator = coordinator_;
  link.join.self.role = cluster::Role::kSupervisor;
  link.join.self.pid = ::getpid();
  link.join.self.rank = plan_.first_rank;
  link.join.self.host = host_name();
  if (plan_.starts_coordinator) link.join.self.address = coordinator_;
  link.join.shared_config = shared_settings(settings());
  link.heartbeat = [this] {
    cluster::Heartbeat beat;
    beat.state = stopping_ ? cluster::State::kDraining : cluster::State::kReady;
    return beat;
  };
  link.on_membership = [this](Epoch, const cluster::Membership& m) { on_membership(m); };
  link.deadline = std::chrono::milliseconds(static_cast<int64_t>(settings().rank_deadline_s * 1000));
  link.on_suspect = [this](bool silent) { tell_of_coordinator(silent); };
  link.on_silence = [this] {
    if (!stopping_ && plan_.starts_coordinator) supervisor_->put_out(coordinator_pid_, "it answers no heartbeat");
  };
  link.on_refused = [this](const std::string& reason) {
    events_.on_give_up({ErrorCode::kFailedPrecondition, "the coordinator refused this node: " + reason});
  };
  link_ = std::make_unique<cluster::Link>(io_, std::move(link));
}

void Deployment::tell_of_coordinator(bool silent) const {
  if (stopping_) return;
  const std::string who = plan_.starts_coordinator
                              ? fmt::format("{} (pid {})", full_name("coordinator"), coordinator_pid_)
                              : fmt::format("{} {}", full_name("coordinator"), coordinator_);
  if (!silent) return spdlog::info("{}: it answers again", who);
  spdlog::warn("{}: no heartbeat was answered for {:.1f} s; it is waited for until {:.1f} s", who,
               std::chrono::duration<double>(cluster::LinkOptions{}.suspect).count(), settings().rank_deadline_s);
}

void Deployment::on_membership(const cluster::Membership& membership) {
  if (stopping_) return;
  if (!joined_) {
    const Status started = start_engines_and_api();
    if (!started.ok()) return events_.on_give_up(started.error());
  }
  for (const auto& departure : membership.departures) {
    const bool ours = departure.host == host_name() && departure.rank >= plan_.first_rank &&
                      departure.rank < plan_.first_rank + plan_.num_ranks;
    if (ours && departure.put_out) supervisor_->put_out(departure.pid, departure.why);
  }
  // Engines without the head's API, or with a share of experts that the head's ranks need no more, have no work left.
  const bool needs_head = settings().headless || expert_group_size(settings()) > 0;
  if (plan_.starts_coordinator || !needs_head || !events_.on_head_leaves) return;
  for (const auto& member : membership.members) {
    const bool is_head = member.role == cluster::Role::kSupervisor && !member.address.empty();
    if (is_head && member.state == cluster::State::kDraining) return events_.on_head_leaves();
  }
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
    if (!joined_) missing = fmt::format("the coordinator at {} does not answer", coordinator_);
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
  if (!ready()) return;
  start_timer_.cancel();
  events_.on_ready();
}

void Deployment::tell_stage(const std::string& name, const std::string& stage) {
  if (events_.on_stage) events_.on_stage(name, stage);
}

void Deployment::stop(bool failed, std::function<void()> done) {
  if (std::exchange(stopping_, true)) return;
  start_timer_.cancel();
  if (link_) link_->heartbeat_now();  // the other nodes should know that this is no accident
  link_ = nullptr;
  using std::chrono::milliseconds;
  milliseconds patience = settings().shutdown_timeout > 0 ? milliseconds(1000 * settings().shutdown_timeout + 5000)
                                                          : std::chrono::duration_cast<milliseconds>(kNoTimeout);
  if (failed) patience = milliseconds(5000);
  supervisor_->stop(patience, std::move(done));
}

}  // namespace manta
