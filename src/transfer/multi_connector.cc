#include "transfer/multi_connector.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "base/log.h"

namespace manta::transfer {
namespace {

class MultiScheduler : public KvConnectorScheduler {
 public:
  explicit MultiScheduler(std::vector<std::unique_ptr<KvConnectorScheduler>> children)
      : children_(std::move(children)) {}

  void on_added(RequestId id, const std::string& params) override {
    source_[id] = 0;
    for (auto& child : children_) child->on_added(id, params);
  }

  Result<std::optional<ExternalMatch>> match(RequestId id, std::span<const TokenId> tokens, int num_local_tokens,
                                             const std::string& params) override {
    for (size_t i = 0; i < children_.size(); ++i) {
      MANTA_ASSIGN(auto found, children_[i]->match(id, tokens, num_local_tokens, params));
      if (found && found->num_tokens == 0) continue;
      source_[id] = i;
      return found;
    }
    return std::optional(ExternalMatch{});
  }

  void on_allocated(RequestId id, std::span<const BlockId> blocks, int num_external_tokens) override {
    children_[source_.at(id)]->on_allocated(id, blocks, num_external_tokens);
  }
  void on_computed(RequestId id, std::span<const BlockId> blocks, int num_computed_tokens) override {
    for (auto& child : children_) child->on_computed(id, blocks, num_computed_tokens);
  }
  void on_preempted(RequestId id) override {
    for (auto& child : children_) child->on_preempted(id);
  }

  kv::KvActions build_actions() override {
    kv::KvActions out;
    for (size_t i = 0; i < children_.size(); ++i) {
      kv::KvActions actions = children_[i]->build_actions();
      take(actions.opens, out.opens, i);
      take(actions.loads, out.loads, i);
      take(actions.saves, out.saves, i);
      out.cancels.insert(out.cancels.end(), actions.cancels.begin(), actions.cancels.end());
      out.before_step |= actions.before_step;
    }
    return out;
  }

  void on_progress(const kv::KvProgress& progress) override {
    for (auto& child : children_) child->on_progress(progress);
  }

  // One child at most may speak in the answer: two would have to be merged by somebody who knows both.
  HandOff on_finished(RequestId id, std::span<const BlockId> blocks, int num_tokens) override {
    source_.erase(id);
    HandOff out;
    for (auto& child : children_) {
      HandOff one = child->on_finished(id, blocks, num_tokens);
      out.held |= one.held;
      if (out.kv_transfer_params.empty()) out.kv_transfer_params = std::move(one.kv_transfer_params);
    }
    return out;
  }

  void on_aborted(RequestId id) override {
    source_.erase(id);
    for (auto& child : children_) child->on_aborted(id);
  }

 private:
  static void take(std::vector<kv::KvAction>& from, std::vector<kv::KvAction>& to, size_t child) {
    for (kv::KvAction& action : from) {
      action.connector = static_cast<int>(child);
      to.push_back(std::move(action));
    }
  }

  std::vector<std::unique_ptr<KvConnectorScheduler>> children_;
  std::unordered_map<RequestId, size_t> source_;  // whom its rows come from
};

class MultiWorker : public KvConnectorWorker {
 public:
  explicit MultiWorker(std::vector<std::unique_ptr<KvConnectorWorker>> children) : children_(std::move(children)) {}

  Status register_cache(const kv::CacheGeometry& geometry, std::span<const CacheLayer> layers) override {
    for (auto& child : children_) MANTA_TRY(child->register_cache(geometry, layers));
    return {};
  }

  std::vector<std::pair<std::string, std::string>> compatibility() const override {
    for (const auto& child : children_) {
      if (auto keys = child->compatibility(); !keys.empty()) return keys;  // one pulls at most
    }
    return {};
  }

  void start(const kv::KvActions& actions) override {
    if (actions.empty()) return;
    for (size_t i = 0; i < children_.size(); ++i) {
      kv::KvActions own;
      own.opens = of_child(actions.opens, i);
      own.loads = of_child(actions.loads, i);
      own.saves = of_child(actions.saves, i);
      own.cancels = actions.cancels;
      children_[i]->start(own);
    }
  }

  void wait_for_layer(int layer) override {
    for (auto& child : children_) child->wait_for_layer(layer);
  }
  void layer_done(int layer) override {
    for (auto& child : children_) child->layer_done(layer);
  }

  // At most one child pulls and keeps leases (make_connector sees to it), so words about a request come from one.
  kv::KvProgress poll() override {
    kv::KvProgress out;
    for (auto& child : children_) {
      kv::KvProgress one = child->poll();
      out.received.insert(out.received.end(), one.received.begin(), one.received.end());
      out.sent.insert(out.sent.end(), one.sent.begin(), one.sent.end());
      std::ranges::move(one.failed, std::back_inserter(out.failed));
      out.counters.bytes_received += one.counters.bytes_received;
      out.counters.bytes_sent += one.counters.bytes_sent;
      out.counters.num_failed += one.counters.num_failed;
      out.counters.num_expired += one.counters.num_expired;
      out.counters.num_refused_stale += one.counters.num_refused_stale;
      out.counters.num_leases += one.counters.num_leases;
    }
    return out;
  }

  void set_wake(std::function<void()> wake) override {
    for (auto& child : children_) child->set_wake(wake);
  }

 private:
  static std::vector<kv::KvAction> of_child(const std::vector<kv::KvAction>& actions, size_t child) {
    std::vector<kv::KvAction> out;
    std::ranges::copy_if(actions, std::back_inserter(out),
                         [child](const kv::KvAction& a) { return a.connector == static_cast<int>(child); });
    return out;
  }

  std::vector<std::unique_ptr<KvConnectorWorker>> children_;
};

}  // namespace

std::unique_ptr<KvConnectorScheduler> make_multi_scheduler(
    std::vector<std::unique_ptr<KvConnectorScheduler>> children) {
  return std::make_unique<MultiScheduler>(std::move(children));
}
std::unique_ptr<KvConnectorWorker> make_multi_worker(std::vector<std::unique_ptr<KvConnectorWorker>> children) {
  return std::make_unique<MultiWorker>(std::move(children));
}

}  // namespace manta::transfer
