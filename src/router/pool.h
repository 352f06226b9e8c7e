// The ranks of one role (prefill or decode) over all api processes that lead to them, with exact counts of what this
// event loop has sent to each.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "api/relay/messages.h"
#include "cluster/link.h"
#include "engine/messages.h"
#include "router/link.h"
#include "router/policy.h"

namespace manta::router {

struct PoolOptions {
  std::string role;                       // "prefill", "decode", "mixed"; for logs and labels
  std::vector<std::string> coordinators;  // addresses, one of each deployment
  Policy policy = Policy::kLeastLoaded;
  std::string process;  // what this router calls itself
};

// One rank of one deployment.
struct Target {
  std::string coordinator;
  int rank = 0;
  int64_t in_flight_tokens = 0;
  int num_in_flight = 0;
  PrefixMemory prefixes{0};
  bool prefixes_sized = false;
};
using TargetPtr = std::shared_ptr<Target>;

struct Demand {
  int64_t num_prompt_tokens = 0;
  int64_t cost = 0;                             // prompt and expected output of all sequences
  std::span<const uint64_t> prefix;             // prefix_hashes(); empty unless wants_prefixes()
  std::optional<int> rank;                      // the client wants this one
  std::function<bool(const Target&)> excluded;  // null: none
};

// A place on a rank; given back when destroyed.
class Seat {
 public:
  Seat() = default;
  Seat(TargetPtr target, Link& link, api::RankView view, int64_t cost);
  Seat(Seat&& other) noexcept;
  Seat& operator=(Seat&& other) noexcept;
  ~Seat() { leave(); }
  explicit operator bool() const { return target_ != nullptr; }
  Link& link() const { return *link_; }  // there as long as a stream of ours is open on it
  const TargetPtr& target() const { return target_; }
  const api::RankView& view() const { return view_; }
  void leave();

 private:
  TargetPtr target_;
  Link* link_ = nullptr;
  api::RankView view_;
  int64_t cost_ = 0;
};

class Pool {
 public:
  Pool(boost::asio::io_context& io, PoolOptions options, std::function<void()> on_change);

  // An empty seat: no rank takes requests now.
  Seat choose(const Demand& demand);
  bool ready() const;  // some rank takes requests
  bool wants_prefixes() const { return options_.policy == Policy::kPrefixAffinity; }
  const std::string& role() const { return options_.role; }
  // Of an engine that is ready.
  std::optional<engine::Welcome> model() const;
  // One link to each api process.
  std::vector<Link*> processes() const;
  // Deployments that are gone from the list are left: what runs there runs on, nothing new is sent. They are let go
  // once nothing runs.
  void set_coordinators(const std::vector<std::string>& coordinators);

 private:
  // One event loop of an api process, as its coordinator announced it.
  struct Member {
    std::string address, host;
    int pid = 0;
    bool suspect = false;   // its heartbeat is late: nothing new
    bool announced = true;  // false: not in the last membership; kept while it answers
    std::unique_ptr<Link> link;
  };
  struct Deployment {
    std::string coordinator;
    bool wanted = true;
    std::vector<Member> members;
    std::unique_ptr<cluster::Link> link;  // last: it calls back into the above
  };
  struct Place {
    TargetPtr target;
    Link* link;
    const api::RankView* view;
  };
  void follow(Deployment& deployment);
  void on_membership(Deployment& deployment, const cluster::Membership& membership);
  void on_link_change();
  void let_go();
  template <typename Visit>
  void each_link(Visit&& visit) const;
  std::vector<Place> places(const Demand& demand);
  TargetPtr target_of(const std::string& coordinator, const api::RankView& view);

  boost::asio::io_context& io_;
  const PoolOptions options_;
  std::function<void()> on_change_;
  std::vector<std::unique_ptr<Deployment>> deployments_;
  std::map<std::pair<std::string, int>, TargetPtr> targets_;
  int block_size_ = 0;
  size_t turn_ = 0;
};

}  // namespace manta::router
