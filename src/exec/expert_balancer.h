// EPLB on one rank: counts the load of its experts, agrees with the other ranks on a better placement when one is due,
// and lets the weights of a layer change between two steps once every rank has them. All ranks run the same steps, so
// all count the same ones and come to the same decision at the same step; what they tell each other goes over the
// expert transport.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "ep/eplb/load_window.h"
#include "ep/eplb/policy.h"
#include "ep/exchange.h"
#include "ep/expert_map.h"
#include "exec/executor.h"
#include "exec/expert_mover.h"

namespace manta::exec {

struct EplbOptions {
  bool enabled = false;
  int64_t window_size = 1000;    // steps of load that are looked at
  int64_t step_interval = 3000;  // steps between rearrangements
  double min_gain = 0;           // of predicted balancedness; 0: move at every interval
  ep::EplbPolicy policy = ep::EplbPolicy::kAuto;
  bool use_async = true;  // false: the step that decides waits until all has moved
  bool log_balancedness = false;
  int64_t log_interval = 1;  // steps
};

class ExpertBalancer {
 public:
  // Takes an expert over. Between steps only.
  using PutExpert = std::function<void(const ep::ExpertMove& move, backend::MlpWeights weights)>;

  // `map` is changed between steps, in place. num_groups: of the router.
  ExpertBalancer(const EplbOptions& options, ep::ExpertMap& map, int num_groups, LoadExpert load, PutExpert put);

  // Nothing is counted or moved any more, until the next group has formed.
  void stop();
  // A group forms: `whole`, the placement of the whole group as this rank has it, becomes that of the ranks that have
  // moved experts last. Collective.
  Status agree(const ep::Exchange& exchange, ep::ExpertMap& whole);
  // It has formed, of all ranks or without some, with the placement that the map has now: counting begins anew.
  Status formed(const ep::EpTopology& topology, bool all_there);
  // A step of the group has ended; loads as the backend counted them. Collective.
  Status step(std::span<const ep::LayerLoad> loads);

  const EplbCounts& counts() const { return counts_; }

 private:
  Status log_balancedness(std::span<const ep::LayerLoad> loads);
  Status decide();
  void note_window(const std::vector<std::vector<int64_t>>& loads);
  Status commit_ready_layer();
  void put(ExpertMover::Layer layer);
  Result<std::vector<std::string>> gather(std::span<const int64_t> values);

  const EplbOptions options_;
  ep::ExpertMap& map_;
  const int num_groups_;
  const PutExpert put_;
  ExpertMover mover_;
  bool formed_ = false;
  ep::EplbPolicy policy_;
  ep::LoadWindow window_;
  ep::Exchange exchange_;
  ep::EplbShape shape_;
  ep::ExpertMap target_;     // of the move under way
  std::vector<int> layers_;  // that it changes, in order
  size_t num_committed_ = 0;
  int64_t version_ = 0;          // layers ever committed
  std::vector<int64_t> logged_;  // [num_layers, size] tokens since the last log line
  int64_t steps_since_log_ = 0;
  EplbCounts counts_;
};

}  // namespace manta::exec
