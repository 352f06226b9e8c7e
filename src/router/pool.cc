#include "router/pool.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace manta::router {

Seat::Seat(TargetPtr target, Link& link, api::RankView view, int64_t cost)
    : target_(std::move(target)), link_(&link), view_(std::move(view)), cost_(cost) {
  ++target_->num_in_flight;
  target_->in_flight_tokens += cost_;
}
Seat::Seat(Seat&& other) noexcept
    : target_(std::move(other.target_)), link_(other.link_), view_(std::move(other.view_)), cost_(other.cost_) {
  other.target_ = nullptr;
}
Seat& Seat::operator=(Seat&& other) noexcept {
  if (this == &other) return *this;
  leave();
  target_ = std::exchange(other.target_, nullptr);
  link_ = other.link_;
  view_ = std::move(other.view_);
  cost_ = other.cost_;
  return *this;
}
void Seat::leave() {
  if (!target_) return;
  --target_->num_in_flight;
  target_->in_flight_tokens -= cost_;
  target_ = nullptr;
}

Pool::Pool(boost::asio::io_context& io, PoolOptions options, std::function<void()> on_change)
    : io_(io), options_(std::move(options)), on_change_(std::move(on_change)) {
  set_coordinators(options_.coordinators);
}

void Pool::set_coordinators(const std::vector<std::string>& coordinators) {
  for (const auto& deployment : deployments_) {
    deployment->wanted =
        std::find(coordinators.begin(), coordinators.end(), deployment->coordinator) != coordinators.end();
  }
  for (const auto& coordinator : coordinators) {
    const bool known = std::any_of(deployments_.begin(), deployments_.end(),
                                   [&](const auto& d) { return d->coordinator == coordinator; });
    if (known) continue;
    auto& deployment = deployments_.emplace_back(std::make_unique<Deployment>());
    deployment->coordinator = coordinator;
    follow(*deployment);
  }
  let_go();
}

void Pool::follow(Deployment& deployment) {
  cluster::LinkOptions link;
  link.coordinator = deployment.coordinator;
  link.join.self.role = cluster::Role::kRouter;
  link.join.self.pid = ::getpid();
  link.heartbeat = [] { return cluster::Heartbeat{cluster::State::kReady, {}, 0, 0}; };
  link.on_membership = [this, &deployment](Epoch, const cluster::Membership& m) { on_membership(deployment, m); };
  link.on_refused = [](const std::string& reason) { spdlog::error("coordinator refused: {}", reason); };
  deployment.link = std::make_unique<cluster::Link>(io_, std::move(link));
}

void Pool::on_membership(Deployment& deployment, const cluster::Membership& membership) {
  // A connection may outlive its process's membership: a stopped process holds its sockets open.
  for (const auto& gone : membership.departures) {
    if (gone.role != cluster::Role::kApi) continue;
    for (const auto& member : deployment.members) {
      if (member.pid == gone.pid && member.host == gone.host) member.link->reset(gone.why);
    }
  }
  for (auto& member : deployment.members) member.announced = false;
  for (const auto& found : membership.members) {
    if (found.role != cluster::Role::kApi || found.address.empty()) continue;
    auto it = std::find_if(deployment.members.begin(), deployment.members.end(),
                           [&](const Member& m) { return m.address == found.address; });
    if (it == deployment.members.end()) {
      auto link = std::make_unique<Link>(io_, found.address, options_.process, [this] { on_link_change(); });
      it = deployment.members.insert(it, Member{.address = found.address, .link = std::move(link)});
    }
    it->announced = true;
    it->suspect = found.state == cluster::State::kSuspect;
    it->host = found.host;
    it->pid = found.pid;
  }
  on_link_change();
}

void Pool::on_link_change() {
  let_go();
  on_change_();
}

// A coordinator that was restarted hears of its members again one by one, so who answers stays. Of a deployment that
// nobody wants any more, only what still has requests stays. The caller may be a line that goes here: it survives its
// own callback.
void Pool::let_go() {
  std::erase_if(deployments_, [this](const auto& deployment) {
    std::erase_if(deployment->members, [&](const Member& m) {
      return deployment->wanted ? !m.announced && !m.link->connected() : m.link->num_streams() == 0;
    });
    if (deployment->wanted || !deployment->members.empty()) return false;
    std::erase_if(targets_, [&](const auto& entry) { return entry.first.first == deployment->coordinator; });
    return true;
  });
}

template <typename Visit>
void Pool::each_link(Visit&& visit) const {
  for (const auto& deployment : deployments_) {
    if (!deployment->wanted) continue;
    for (const auto& member : deployment->members) {
      if (member.suspect || !member.link->connected() || member.link->views().draining) continue;
      visit(*deployment, *member.link);
    }
  }
}

// Each rank once, through the event loop of its deployment that has the least to do.
std::vector<Pool::Place> Pool::places(const Demand& demand) {
  std::vector<Place> out;
  each_link([&](const Deployment& deployment, Link& link) {
    for (const auto& view : link.views().ranks) {
      if (!view.ready || (demand.rank && view.rank != *demand.rank)) continue;
      const TargetPtr target = target_of(deployment.coordinator, view);
      if (demand.excluded && demand.excluded(*target)) continue;
      const auto same = std::find_if(out.begin(), out.end(), [&](const Place& p) { return p.target == target; });
      if (same == out.end()) {
        out.push_back({target, &link, &view});
      } else if (link.num_streams() < same->link->num_streams()) {
        *same = {target, &link, &view};
      }
    }
  });
  return out;
}

TargetPtr Pool::target_of(const std::string& coordinator, const api::RankView& view) {
  TargetPtr& target = targets_[{coordinator, view.rank}];
  if (!target) {
    target = std::make_shared<Target>();
    target->coordinator = coordinator;
    target->rank = view.rank;
  }
  if (!target->prefixes_sized && block_size_ > 0 && view.num_blocks > 0) {
    target->prefixes = PrefixMemory(static_cast<size_t>(view.num_blocks) * static_cast<size_t>(block_size_) / kBlock);
    target->prefixes_sized = true;
  }
  return target;
}

Seat Pool::choose(const Demand& demand) {
  if (block_size_ == 0) {
    if (const auto welcome = model()) block_size_ = welcome->block_size;
  }
  const std::vector<Place> all = places(demand);
  if (all.empty()) return {};
  std::vector<Candidate> candidates;
  for (const Place& place : all) {
    candidates.push_back({.in_flight = place.target->in_flight_tokens,
                          .waiting = place.view->num_waiting,
                          .capacity = int64_t{place.view->num_blocks} * block_size_,
                          .free = int64_t{place.view->num_free_blocks} * block_size_,
                          .cached = static_cast<int64_t>(place.target->prefixes.match(demand.prefix) * kBlock)});
  }
  const size_t turn = turn_++;
  const size_t best = options_.role == "prefill"
                          ? choose_prefill(options_.policy, candidates, demand.num_prompt_tokens, turn)
                          : choose_decode(options_.policy, candidates, demand.cost, turn);
  all[best].target->prefixes.insert(demand.prefix);
  return Seat(all[best].target, *all[best].link, *all[best].view, demand.cost);
}

bool Pool::ready() const {
  bool any = false;
  each_link([&](const Deployment&, Link& link) {
    const auto& ranks = link.views().ranks;
    any = any || std::any_of(ranks.begin(), ranks.end(), [](const auto& r) { return r.ready; });
  });
  return any;
}

std::optional<engine::Welcome> Pool::model() const {
  std::optional<engine::Welcome> out;
  each_link([&](const Deployment&, Link& link) {
    if (out || link.views().welcome.empty()) return;
    if (auto welcome = engine::decode_welcome(link.views().welcome); welcome.ok()) out = *welcome;
  });
  return out;
}

std::vector<Link*> Pool::processes() const {
  std::vector<Link*> out;
  for (const auto& deployment : deployments_) {
    std::vector<std::pair<std::string, int>> seen;
    for (const auto& member : deployment->members) {
      const std::pair process(member.host, member.pid);
      if (std::find(seen.begin(), seen.end(), process) != seen.end()) continue;
      seen.push_back(process);
      out.push_back(member.link.get());
    }
  }
  return out;
}

}  // namespace manta::router
