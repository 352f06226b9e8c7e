#include "exec/expert_balancer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/log.h"

namespace manta::exec {

namespace {

std::string_view bytes_of(std::span<const int64_t> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

std::vector<int64_t> values_of(const std::string& bytes) {
  std::vector<int64_t> values(bytes.size() / sizeof(int64_t));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(int64_t));
  return values;
}

// Nodes as the policy wants them: equally many consecutive ranks each; 1 where hosts are not laid out so.
int num_nodes(const ep::EpTopology& topology) {
  int nodes = 1;
  for (int r = 1; r < topology.size; ++r) nodes += topology.peers[r].host_id != topology.peers[r - 1].host_id;
  if (topology.size % nodes != 0) return 1;
  const int per_node = topology.size / nodes;
  for (int r = 0; r < topology.size; ++r) {
    if (topology.peers[r].host_id != topology.peers[r / per_node * per_node].host_id) return 1;
  }
  return nodes;
}

}  // namespace

ExpertBalancer::ExpertBalancer(const EplbOptions& options, ep::ExpertMap& map, int num_groups, LoadExpert load,
                               PutExpert put)
    : options_(options),
      map_(map),
      num_groups_(num_groups),
      put_(std::move(put)),
      mover_(std::move(load)),
      policy_(options.policy),
      window_(options.window_size, options.step_interval, map.num_layers, map.num_logical) {}

Result<std::vector<std::string>> ExpertBalancer::gather(std::span<const int64_t> values) {
  return ep::all_gather(exchange_, bytes_of(values));
}

void ExpertBalancer::stop() {
  mover_.cancel();
  formed_ = false;
}

Status ExpertBalancer::agree(const ep::Exchange& exchange, ep::ExpertMap& whole) {
  exchange_ = exchange;
  std::vector<int64_t> mine = {version_};
  mine.insert(mine.end(), whole.physical_to_logical.begin(), whole.physical_to_logical.end());
  MANTA_ASSIGN(const std::vector<std::string> all, gather(mine));
  std::vector<int64_t> newest = values_of(all[0]);
  for (const std::string& bytes : all) {
    std::vector<int64_t> theirs = values_of(bytes);
    if (theirs[0] > newest[0]) newest = std::move(theirs);
  }
  version_ = newest[0];
  MANTA_ASSIGN(whole, ep::expert_map_of(whole.num_layers, whole.num_logical, whole.max_replicas,
                                        {newest.begin() + 1, newest.end()}, whole.epoch));
  return {};
}

Status ExpertBalancer::formed(const ep::EpTopology& topology, bool all_there) {
  shape_ = {map_.num_logical, map_.num_physical, topology.size, num_nodes(topology), num_groups_};
  policy_ = options_.policy;
  if (const auto possible = ep::choose_policy(policy_, shape_); !possible.ok()) {
    if (all_there) return possible.error();
    if (topology.rank == 0) {
      spdlog::warn("{}: global until all ranks are there", possible.error().message);
    }
    policy_ = ep::EplbPolicy::kGlobal;
  }
  window_ = ep::LoadWindow(options_.window_size, options_.step_interval, map_.num_layers, map_.num_logical);
  logged_.assign(static_cast<size_t>(map_.num_layers) * topology.size, 0);
  steps_since_log_ = 0;
  formed_ = true;
  return {};
}

Status ExpertBalancer::step(std::span<const ep::LayerLoad> loads) {
  if (!formed_) return {};
  window_.step(loads, map_);
  if (options_.log_balancedness) MANTA_TRY(log_balancedness(loads));
  if (mover_.moving()) return commit_ready_layer();
  if (!window_.due()) return {};
  MANTA_TRY(decide());
  while (!options_.use_async && mover_.moving()) {
    mover_.wait_packed();
    MANTA_TRY(commit_ready_layer());
  }
  return {};
}

Status ExpertBalancer::decide() {
  std::vector<int64_t> mine;
  for (const auto& layer : window_.loads()) mine.insert(mine.end(), layer.begin(), layer.end());
  window_.restart();
  MANTA_ASSIGN(const std::vector<std::string> all, gather(mine));
  std::vector<std::vector<int64_t>> loads(map_.num_layers, std::vector<int64_t>(map_.num_logical, 0));
  for (const std::string& bytes : all) {
    const std::vector<int64_t> theirs = values_of(bytes);
    for (size_t i = 0; i < theirs.size(); ++i) loads[i / map_.num_logical][i % map_.num_logical] += theirs[i];
  }
  note_window(loads);
  MANTA_ASSIGN(ep::EplbPlan plan, ep::plan_placement(loads, map_, shape_, policy_));
  const bool moves = ep::worth_moving(plan, options_.min_gain);
  if (exchange_.rank == 0) {
    spdlog::info("EPLB: balancedness {:.3f}, {:.3f} after moving {} of {} experts: {}", plan.balanced_now,
                 plan.balanced_then, plan.num_moves, map_.num_layers * map_.num_physical,
                 moves ? "moving" : "not worth it");
  }
  if (!moves) return {};
  target_ = std::move(plan.target);
  layers_ = ep::layers_to_migrate(map_, target_);
  num_committed_ = 0;
  std::vector<std::vector<ep::ExpertMove>> by_layer;
  for (const int layer : layers_) {
    by_layer.push_back(ep::moves_of(map_, target_, layer, exchange_.rank, exchange_.size));
  }
  mover_.begin(std::move(by_layer));
  return {};
}

void ExpertBalancer::note_window(const std::vector<std::vector<int64_t>>& loads) {
  auto window = std::make_shared<EplbWindow>();
  window->num_experts = map_.num_logical;
  for (int layer = 0; layer < map_.num_layers; ++layer) {
    const auto now =
        std::span(map_.physical_to_logical).subspan(static_cast<size_t>(layer) * map_.num_physical, map_.num_physical);
    window->balancedness.push_back(ep::predicted_balancedness(loads[layer], now, exchange_.size));
    window->tokens.insert(window->tokens.end(), loads[layer].begin(), loads[layer].end());
  }
  counts_.window = std::move(window);
}

// The next layer, once all ranks have packed it. One that cannot pack ends the move everywhere; what is in place stays.
Status ExpertBalancer::commit_ready_layer() {
  const Status packing = mover_.status();
  const int64_t mine = packing.ok() ? mover_.num_packed() : -1;
  MANTA_ASSIGN(const std::vector<std::string> all, gather(std::span(&mine, 1)));
  int64_t fewest = mine;
  for (const std::string& bytes : all) fewest = std::min(fewest, values_of(bytes)[0]);
  if (fewest < 0) {
    if (!packing.ok()) {
      spdlog::error("EPLB: rank {} cannot load an expert, the experts stay where they are: {}", exchange_.rank,
                    packing.error().message);
    }
    mover_.cancel();
    return {};
  }
  if (fewest <= static_cast<int64_t>(num_committed_)) return {};
  put(mover_.take());
  ep::adopt_layer(map_, target_, layers_[num_committed_]);
  ++num_committed_;
  ++version_;
  if (num_committed_ < layers_.size()) return {};
  ++counts_.num_rearrangements;
  if (exchange_.rank == 0) spdlog::info("EPLB: rearrangement {} is complete", counts_.num_rearrangements);
  return {};
}

void ExpertBalancer::put(ExpertMover::Layer layer) {
  for (size_t i = 0; i < layer.moves.size(); ++i) {
    put_(layer.moves[i], std::move(layer.weights[i]));
    ++counts_.num_moved;
  }
}

// Of the tokens that were routed since the last line, over all ranks.
Status ExpertBalancer::log_balancedness(std::span<const ep::LayerLoad> loads) {
  const int per_rank = map_.num_physical / exchange_.size;
  for (const ep::LayerLoad& load : loads) {
    for (size_t p = 0; p < load.tokens.size(); ++p)
      logged_[load.layer * exchange_.size + p / per_rank] += load.tokens[p];
  }
  if (++steps_since_log_ < options_.log_interval) return {};
  steps_since_log_ = 0;
  MANTA_ASSIGN(const std::vector<std::string> all, gather(logged_));
  std::fill(logged_.begin(), logged_.end(), 0);
  std::vector<int64_t> tokens(logged_.size(), 0);
  for (const std::string& bytes : all) {
    const std::vector<int64_t> theirs = values_of(bytes);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] += theirs[i];
  }
  const int64_t total = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  if (exchange_.rank != 0 || total == 0) return {};
  int64_t heaviest = 0;  // rank of each layer
  for (int layer = 0; layer < map_.num_layers; ++layer) {
    heaviest +=
        *std::max_element(tokens.begin() + layer * exchange_.size, tokens.begin() + (layer + 1) * exchange_.size);
  }
  const double mean = static_cast<double>(total) / exchange_.size;
  spdlog::info("EPLB: balancedness {:.3f} (tokens a rank, summed over layers: mean {:.1f}, max {}), {} steps to go",
               mean / static_cast<double>(heaviest), mean, heaviest, std::max<int64_t>(0, window_.steps_to_go()));
  return {};
}

}  // namespace manta::exec
