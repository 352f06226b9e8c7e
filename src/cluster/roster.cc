#include "cluster/roster.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/settings.h"

namespace manta::cluster {
namespace {

std::string describe(const Member& m) {
  return fmt::format("{} rank {} (host {}, pid {})", to_string(m.role), m.rank, m.host, m.pid);
}

std::string describe(const Where& w) {
  // A step without rows of its own, for the other ranks, has no number.
  const std::string step = w.step > 0 ? fmt::format("step {}", w.step) : w.layer < 0 ? "no step" : "dummy step";
  return w.layer < 0 ? fmt::format("{}, stage {}", step, w.stage)
                     : fmt::format("{}, layer {}, stage {}", step, w.layer, w.stage);
}

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

Status Roster::check_config(const Join& join) {
  if (join.shared_config.empty()) return {};
  const bool alone =
      std::none_of(entries_.begin(), entries_.end(), [](const auto& e) { return e.second.brought_config; });
  if (alone && !fixed_config_) {
    shared_config_ = join.shared_config;
    return {};
  }
  const size_t n = std::max(shared_config_.size(), join.shared_config.size());
  for (size_t i = 0; i < n; ++i) {
    const auto value = [i](const auto& config) {
      return i < config.size() ? config[i] : std::pair<std::string, std::string>{"(absent)", "(absent)"};
    };
    const auto ours = value(shared_config_);
    const auto theirs = value(join.shared_config);
    if (ours == theirs) continue;
    return error(ErrorCode::kFailedPrecondition,
                 fmt::format("{}: {} = {} here, {} = {} in the deployment (configuration {} and {}); start every node "
                             "of a deployment with the same configuration",
                             describe(join.self), theirs.first, theirs.second, ours.first, ours.second,
                             config_hash(join.shared_config), config_hash(shared_config_)));
  }
  return {};
}

Status Roster::join(MemberId id, const Join& join, Time now) {
  MANTA_TRY(check_config(join));
  if (join.self.role == Role::kEngine) {
    for (const auto& [other_id, other] : entries_) {
      if (other.member.role != Role::kEngine || other.member.rank != join.self.rank) continue;
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("{}: that rank is taken by {}", describe(join.self), describe(other.member)));
    }
  }
  Entry entry{join.self, now, now, join.self.state};
  entry.brought_config = !join.shared_config.empty();
  entries_.insert_or_assign(id, std::move(entry));
  // Also beyond what the members of an earlier coordinator have seen: an epoch is never used twice.
  epoch_.value = std::max(epoch_.value, join.last_epoch + 1);
  if (join.self.role == Role::kEngine) ++epoch_.value;
  changed_ = true;
  return {};
}

void Roster::heartbeat(MemberId id, const Heartbeat& beat, Time now) {
  const auto it = entries_.find(id);
  if (it == entries_.end()) return;
  Entry& e = it->second;
  if (beat.where.counter != e.member.where.counter || !beat.where.busy) e.last_progress = now;
  if (e.member.state == State::kSuspect) {
    spdlog::info("{}: heard again after {:.1f} s", describe(e.member), seconds(now - e.last_heartbeat));
  }
  e.last_heartbeat = now;
  e.reported = beat.state;
  if (e.member.state != beat.state) changed_ = true;
  e.member.state = beat.state;
  e.member.where = beat.where;
  e.member.num_running = beat.num_running;
  e.member.num_waiting = beat.num_waiting;
  const GroupPlace before = std::exchange(e.member.group, beat.group);
  changed_ |= before.announced != beat.group.announced || before.epoch != beat.group.epoch;
  if (beat.group.fault_epoch == epoch_.value) {
    if (missing_since_ != Time::max()) missing_since_ = now;  // the next try without that rank can wait
    start_over(now, fmt::format("a step failed at {}; its log says why", describe(e.member)));
  }
}

void Roster::leave(MemberId id, const std::string& why) {
  const auto it = entries_.find(id);
  if (it == entries_.end()) return;
  const Member& m = it->second.member;
  // Engines' departures are told in any case, others' when they were waited for.
  if (m.role != Role::kEngine && m.state == State::kSuspect) spdlog::warn("{}: gone: {}", describe(m), why);
  remove(it, it->second.member.state == State::kDraining ? "drained" : why, false);
}

void Roster::remove(std::map<MemberId, Entry>::iterator it, const std::string& why, bool put_out) {
  const Member& m = it->second.member;
  departures_.push_back({m.role, m.rank, m.pid, m.host,
                         fmt::format("{}: {}; last seen at {}", describe(m), why, describe(m.where)), put_out});
  if (m.role == Role::kEngine) ++epoch_.value;
  entries_.erase(it);
  changed_ = true;
}

void Roster::settle_group(int size, Time now) {
  std::vector<int32_t> there;
  for (const auto& [id, e] : entries_) {
    if (e.member.role == Role::kEngine && e.member.group.announced && e.member.rank < size) {
      there.push_back(e.member.rank);
    }
  }
  std::sort(there.begin(), there.end());
  const bool whole = static_cast<int>(there.size()) == size;
  was_whole_ |= whole;
  missing_since_ = whole ? Time::max() : std::min(missing_since_, now);
  const bool shrinks = was_whole_ && deadlines_.shrink.count() > 0 && now - missing_since_ >= deadlines_.shrink;
  if (!whole && !shrinks) there.clear();
  if (there == group_) return;
  if (!group_.empty()) ++epoch_.value;
  group_ = std::move(there);
  changed_ = true;
}

int Roster::rank_of(MemberId id) const {
  const auto it = entries_.find(id);
  return it == entries_.end() || it->second.member.role != Role::kEngine ? -1 : it->second.member.rank;
}

// Why the member must go; empty: it may stay.
std::string Roster::fault_of(const Entry& e, Time now) const {
  const auto silent = now - e.last_heartbeat;
  if (silent >= deadlines_.rank) return fmt::format("no heartbeat for {:.1f} s", seconds(silent));
  const auto still = now - e.last_progress;
  if (e.member.where.busy && still >= deadlines_.step && !e.member.where.waits) {
    return fmt::format("heartbeat, but no progress for {:.1f} s", seconds(still));
  }
  if (!e.member.where.busy && e.owes_since != Time::max() && now - e.owes_since >= deadlines_.step) {
    return fmt::format("heartbeat, but the other ranks have waited {:.1f} s for its vote", seconds(now - e.owes_since));
  }
  return {};
}

std::vector<MemberId> Roster::tick(Time now, const std::vector<int>& owing) {
  bool waited_long = false, somebody_works = !owing.empty();
  for (auto& [id, e] : entries_) {
    const bool owes = e.member.role == Role::kEngine && std::ranges::find(owing, e.member.rank) != owing.end();
    if (!owes) e.owes_since = Time::max();
    if (owes && e.owes_since == Time::max()) e.owes_since = now;
    waited_long |= e.member.where.waits && now - e.last_progress >= deadlines_.step;
    somebody_works |= e.member.where.busy && !e.member.where.waits;
  }
  std::vector<MemberId> out;
  for (auto it = entries_.begin(); it != entries_.end();) {
    const auto current = it++;
    Entry& e = current->second;
    const std::string why = fault_of(e, now);
    if (!why.empty()) {
      out.push_back(current->first);
      remove(current, why, true);
    } else if (now - e.last_heartbeat >= deadlines_.suspect && e.member.state != State::kSuspect) {
      e.member.state = State::kSuspect;
      changed_ = true;
      spdlog::warn("{}: no heartbeat for {:.1f} s; it is waited for until {:.1f} s; last seen at {}",
                   describe(e.member), seconds(now - e.last_heartbeat), seconds(deadlines_.rank),
                   describe(e.member.where));
    }
  }
  if (waited_long && !out.empty()) forgive(now);
  if (waited_long && !somebody_works) start_over(now, "every rank waits for another");
  return out;
}

// The same members, a new group.
void Roster::start_over(Time now, const std::string& why) {
  ++epoch_.value;
  changed_ = true;
  spdlog::warn("the group is put together anew at epoch {}: {}", epoch_.value, why);
  forgive(now);
}

// Those that waited for a rank that is out now have their deadline before them again.
void Roster::forgive(Time now) {
  for (auto& [id, e] : entries_) e.last_progress = now;
}

bool Roster::take_changed() {
  return std::exchange(changed_, false);
}

Membership Roster::membership() {
  Membership m;
  m.group = group_;
  for (const auto& [id, e] : entries_) m.members.push_back(e.member);
  std::sort(m.members.begin(), m.members.end(),
            [](const Member& a, const Member& b) { return std::pair(a.role, a.rank) < std::pair(b.role, b.rank); });
  m.departures = std::exchange(departures_, {});
  return m;
}

}  // namespace manta::cluster
