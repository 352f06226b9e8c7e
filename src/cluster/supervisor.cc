#include "cluster/supervisor.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <map>
#include <optional>
#include <utility>

#include "base/log.h"

namespace manta::cluster {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

class Supervisor::Core : public std::enable_shared_from_this<Supervisor::Core> {
 public:
  Core(asio::io_context& io, SupervisorEvents events) : io_(io), stop_timer_(io), events_(std::move(events)) {}

  Status start(ChildPlan plan) {
    const std::string name = plan.name;
    Entry& entry = entries_[name];
    entry.plan = std::move(plan);
    entry.restart_timer = std::make_unique<asio::steady_timer>(io_);
    return launch(entry);
  }

  void stop(std::chrono::milliseconds patience, std::function<void()> done) {
    if (stopping_) return;
    stopping_ = true;
    on_stopped_ = std::move(done);
    for (auto& [name, entry] : entries_) entry.restart_timer->cancel();
    stop_timer_.expires_after(patience);
    stop_timer_.async_wait([self = shared_from_this(), patience](boost::system::error_code ec) {
      if (ec) return;
      for (auto& [name, entry] : self->entries_) {
        if (!entry.child) continue;
        spdlog::warn("{} (pid {}) did not end within {} ms: killed", name, entry.child->pid(), patience.count());
        entry.child->signal(SIGKILL);
      }
    });
    stop_next();
  }

  bool put_out(pid_t pid, const std::string& why) {
    for (auto& [name, entry] : entries_) {
      if (!entry.child || entry.child->pid() != pid) continue;
      entry.put_out_why = why;
      entry.child->signal(SIGKILL);
      return true;
    }
    return false;
  }

  void abandon() {
    stopping_ = true;
    events_ = {};
    on_stopped_ = nullptr;
    stop_timer_.cancel();
    entries_.clear();
  }

 private:
  struct Entry {
    ChildPlan plan;
    std::unique_ptr<Child> child;  // null while it does not run
    std::unique_ptr<asio::steady_timer> restart_timer;
    std::deque<Clock::time_point> deaths;
    std::string put_out_why;  // of the child that runs
    bool asked_to_stop = false;
  };

  Status launch(Entry& entry) {
    const std::string name = entry.plan.name;
    ChildEvents events;
    events.on_status = [this, name](const std::string& line) {
      if (events_.on_status) events_.on_status(name, line);
    };
    events.on_output = [self = weak_from_this()](const std::string& line) {
      const auto core = self.lock();
      if (core && core->events_.on_output) core->events_.on_output(line);
    };
    events.on_exit = [this, name](int wait_status) { on_exit(entries_.at(name), wait_status); };
    MANTA_ASSIGN(entry.child, spawn_child(io_, entry.plan.command, std::move(events)));
    if (events_.on_started) events_.on_started(name, entry.child->pid());
    return {};
  }

  void on_exit(Entry& entry, int wait_status) {
    const pid_t pid = entry.child->pid();
    entry.child = nullptr;
    if (stopping_) return stop_next();
    // Whether it was dead before it was killed nobody can say; the reason tells a stuck one from one that had gone.
    const std::string why = std::exchange(entry.put_out_why, {});
    spdlog::error("{} (pid {}) ended: {}{}", entry.plan.name, pid, describe_exit(wait_status),
                  why.empty() ? "" : fmt::format("; it was put out: {}", why));
    if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == kExitBadConfiguration) {
      return give_up(entry, "its configuration is wrong, see its last lines above");
    }
    const auto now = Clock::now();
    entry.deaths.push_back(now);
    while (now - entry.deaths.front() > kRestartWindow) entry.deaths.pop_front();
    if (entry.deaths.size() > static_cast<size_t>(kMaxRestarts)) {
      return give_up(entry, fmt::format("it died {} times within {} s", entry.deaths.size(), kRestartWindow.count()));
    }
    restart_later(entry);
  }

  // At once after the first death, then 100 ms, 200 ms, 400 ms, … : a crash loop must not eat the machine.
  void restart_later(Entry& entry) {
    const auto n = static_cast<int>(entry.deaths.size());
    const auto delay = n <= 1 ? std::chrono::milliseconds(0) : std::chrono::milliseconds(100 << std::min(n - 2, 6));
    entry.restart_timer->expires_after(delay);
    entry.restart_timer->async_wait([self = shared_from_this(), name = entry.plan.name](boost::system::error_code ec) {
      if (ec || self->stopping_) return;
      Entry& again = self->entries_.at(name);
      const Status launched = self->launch(again);
      if (!launched.ok()) return self->give_up(again, launched.error().message);
      spdlog::info("{} restarted as pid {}", name, again.child->pid());
    });
  }

  void give_up(const Entry& entry, const std::string& why) {
    if (std::exchange(gave_up_, true)) return;
    const Error e{ErrorCode::kFailedPrecondition, fmt::format("{}: {}", entry.plan.name, why)};
    asio::post(io_, [self = shared_from_this(), e] {
      if (self->events_.on_give_up) self->events_.on_give_up(e);
    });
  }

  // Asks the lowest stop_order that still runs; called again at each exit.
  void stop_next() {
    std::optional<int> lowest;
    for (const auto& [name, entry] : entries_) {
      if (entry.child) lowest = std::min(lowest.value_or(entry.plan.stop_order), entry.plan.stop_order);
    }
    if (!lowest) {
      stop_timer_.cancel();
      if (auto done = std::exchange(on_stopped_, nullptr)) asio::post(io_, std::move(done));
      return;
    }
    for (auto& [name, entry] : entries_) {
      if (!entry.child || entry.plan.stop_order != *lowest || entry.asked_to_stop) continue;
      entry.asked_to_stop = true;
      entry.child->signal(SIGTERM);
    }
  }

  asio::io_context& io_;
  asio::steady_timer stop_timer_;
  SupervisorEvents events_;
  std::map<std::string, Entry> entries_;
  std::function<void()> on_stopped_;
  bool stopping_ = false;
  bool gave_up_ = false;
};

Supervisor::Supervisor(asio::io_context& io, SupervisorEvents events)
    : core_(std::make_shared<Core>(io, std::move(events))) {}
Supervisor::~Supervisor() {
  core_->abandon();
}
Status Supervisor::start(ChildPlan plan) {
  return core_->start(std::move(plan));
}
void Supervisor::stop(std::chrono::milliseconds patience, std::function<void()> done) {
  core_->stop(patience, std::move(done));
}
bool Supervisor::put_out(pid_t pid, const std::string& why) {
  return core_->put_out(pid, why);
}

}  // namespace manta::cluster
