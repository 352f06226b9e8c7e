#include "ep/eplb/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace manta::ep {
namespace {

// Exact comparison of a/b with c/d for loads and counts: floating point would let ranks disagree on ties.
bool less_per_replica(int64_t a, int64_t b, int64_t c, int64_t d) {
  return static_cast<__int128>(a) * d < static_cast<__int128>(c) * b;
}

struct Item {
  int index = 0;
  int64_t load = 0;
  int64_t replicas = 1;  // its weight is load / replicas
};

// Packs items into bins of equal count, heaviest first, each into the lightest bin that has room, where one is without
// a replica of the same expert into such a one: two on one rank share no work, and both die with it.
std::vector<std::vector<int>> pack(std::vector<Item> items, int num_bins) {
  constexpr int64_t kScale = 1 << 20;  // sums of fractions in fixed point: the same on every machine
  const size_t room = items.size() / static_cast<size_t>(num_bins);
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return less_per_replica(b.load, b.replicas, a.load, a.replicas);
  });
  std::vector<std::vector<int>> bins(num_bins);
  std::vector<__int128> weight(num_bins, 0);
  for (const Item& item : items) {
    int best = -1;
    bool best_has_it = false;
    for (int b = 0; b < num_bins; ++b) {
      if (bins[b].size() == room) continue;
      const bool has_it = std::find(bins[b].begin(), bins[b].end(), item.index) != bins[b].end();
      if (best >= 0 && (has_it > best_has_it || (has_it == best_has_it && weight[b] >= weight[best]))) continue;
      best = b;
      best_has_it = has_it;
    }
    bins[best].push_back(item.index);
    weight[best] += static_cast<__int128>(item.load) * kScale / item.replicas;
  }
  return bins;
}

// One replica each, then the spare slots one by one to the expert with the most tokens per replica, never more than one
// replica a rank: a second one on the same rank would take nothing off it.
std::vector<int> count_replicas(const std::vector<int64_t>& load, int num_slots, int max_replicas) {
  std::vector<int> count(load.size(), 1);
  for (int spare = num_slots - static_cast<int>(load.size()); spare > 0; --spare) {
    int best = -1;
    for (int e = 0; e < static_cast<int>(load.size()); ++e) {
      if (count[e] >= max_replicas) continue;
      if (best < 0 || less_per_replica(load[best], count[best], load[e], count[e])) best = e;
    }
    ++count[best];
  }
  return count;
}

// Experts -> the expert sets of `num_ranks` ranks with num_slots slots in all.
std::vector<std::vector<int>> place_on_ranks(const std::vector<int>& experts, std::span<const int64_t> load,
                                             int num_slots, int num_ranks) {
  std::vector<int64_t> own;
  for (const int e : experts) own.push_back(load[e]);
  const std::vector<int> count = count_replicas(own, num_slots, num_ranks);
  std::vector<Item> items;
  for (size_t i = 0; i < experts.size(); ++i) {
    for (int r = 0; r < count[i]; ++r) items.push_back({experts[i], own[i], count[i]});
  }
  return pack(std::move(items), num_ranks);
}

std::vector<std::vector<int>> place(std::span<const int64_t> load, const EplbShape& shape, EplbPolicy policy) {
  std::vector<int> all(shape.num_logical);
  std::iota(all.begin(), all.end(), 0);
  if (policy == EplbPolicy::kGlobal) return place_on_ranks(all, load, shape.num_physical, shape.num_ranks);

  const int group_size = shape.num_logical / shape.num_groups;
  std::vector<Item> groups;
  for (int g = 0; g < shape.num_groups; ++g) {
    const auto first = load.begin() + g * group_size;
    groups.push_back({g, std::accumulate(first, first + group_size, int64_t{0}), 1});
  }
  std::vector<std::vector<int>> ranks;
  for (std::vector<int>& node : pack(std::move(groups), shape.num_nodes)) {
    std::sort(node.begin(), node.end());
    std::vector<int> experts;
    for (const int g : node) {
      for (int e = g * group_size; e < (g + 1) * group_size; ++e) experts.push_back(e);
    }
    auto placed =
        place_on_ranks(experts, load, shape.num_physical / shape.num_nodes, shape.num_ranks / shape.num_nodes);
    std::move(placed.begin(), placed.end(), std::back_inserter(ranks));
  }
  return ranks;
}

// The slots of one rank: experts that it has already keep theirs, the new ones take what is left, lowest first.
void fill_slots(std::vector<int> experts, std::span<const int32_t> current, std::span<int32_t> out) {
  std::vector<size_t> open;
  for (size_t slot = 0; slot < current.size(); ++slot) {
    const auto stays = std::find(experts.begin(), experts.end(), current[slot]);
    if (stays == experts.end()) {
      open.push_back(slot);
      continue;
    }
    out[slot] = current[slot];
    experts.erase(stays);
  }
  std::sort(experts.begin(), experts.end());
  for (size_t i = 0; i < open.size(); ++i) out[open[i]] = experts[i];
}

double mean_over_max(const std::vector<double>& ranks) {
  const double most = *std::max_element(ranks.begin(), ranks.end());
  if (most == 0) return 1;
  return std::accumulate(ranks.begin(), ranks.end(), 0.0) / static_cast<double>(ranks.size()) / most;
}

Status check_shape(const std::vector<std::vector<int64_t>>& loads, const ExpertMap& current, const EplbShape& shape) {
  const auto refuse = [](const char* what, int64_t is, int64_t wanted) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("EPLB plan: {} is {}, the expert map has {}", what, is, wanted));
  };
  if (static_cast<int>(loads.size()) != current.num_layers) return refuse("layers", loads.size(), current.num_layers);
  if (shape.num_logical != current.num_logical) return refuse("num_logical", shape.num_logical, current.num_logical);
  if (shape.num_physical != current.num_physical)
    return refuse("num_physical", shape.num_physical, current.num_physical);
  for (const auto& layer : loads) {
    if (static_cast<int>(layer.size()) != shape.num_logical)
      return refuse("a layer's experts", layer.size(), shape.num_logical);
  }
  return {};
}

}  // namespace

const char* to_string(EplbPolicy policy) {
  switch (policy) {
    case EplbPolicy::kHierarchical: return "hierarchical";
    case EplbPolicy::kGlobal: return "global";
    case EplbPolicy::kAuto: break;
  }
  return "auto";
}

Result<EplbPolicy> choose_policy(EplbPolicy wanted, const EplbShape& s) {
  if (s.num_ranks < 1 || s.num_physical < s.num_logical || s.num_physical % s.num_ranks != 0) {
    return error(
        ErrorCode::kInvalidArgument,
        fmt::format("EPLB: {} slots for {} experts on {} ranks: slots must cover the experts and divide by the ranks",
                    s.num_physical, s.num_logical, s.num_ranks));
  }
  const bool divides = s.num_nodes > 0 && s.num_groups > 0 && s.num_logical % s.num_groups == 0 &&
                       s.num_groups % s.num_nodes == 0 && s.num_ranks % s.num_nodes == 0 &&
                       // no expert needs two slots on one rank of its node
                       s.num_physical <= static_cast<int64_t>(s.num_logical) * (s.num_ranks / s.num_nodes);
  if (wanted == EplbPolicy::kGlobal) return wanted;
  if (wanted == EplbPolicy::kAuto) return divides && s.num_nodes > 1 ? EplbPolicy::kHierarchical : EplbPolicy::kGlobal;
  if (!divides) {
    return error(
        ErrorCode::kInvalidArgument,
        fmt::format("eplb_config.policy hierarchical: {} expert groups and {} ranks must divide by {} nodes, and {} "
                    "slots fit {} experts on the ranks of one node; use global or auto",
                    s.num_groups, s.num_ranks, s.num_nodes, s.num_physical, s.num_logical));
  }
  return wanted;
}

std::vector<int32_t> place_layer(std::span<const int64_t> load, std::span<const int32_t> current,
                                 const EplbShape& shape, EplbPolicy policy) {
  std::vector<int32_t> out(current.begin(), current.end());
  if (std::all_of(load.begin(), load.end(), [](int64_t tokens) { return tokens == 0; })) return out;
  const auto ranks = place(load, shape, policy);
  const size_t per_rank = current.size() / static_cast<size_t>(shape.num_ranks);
  for (size_t r = 0; r < ranks.size(); ++r) {
    fill_slots(ranks[r], current.subspan(r * per_rank, per_rank), std::span(out).subspan(r * per_rank, per_rank));
  }
  return out;
}

double predicted_balancedness(std::span<const int64_t> load, std::span<const int32_t> physical_to_logical,
                              int num_ranks) {
  std::vector<int> replicas(load.size(), 0);
  for (const int32_t e : physical_to_logical) ++replicas[e];
  std::vector<double> ranks(num_ranks, 0);
  const size_t per_rank = physical_to_logical.size() / static_cast<size_t>(num_ranks);
  for (size_t p = 0; p < physical_to_logical.size(); ++p) {
    const int32_t e = physical_to_logical[p];
    ranks[p / per_rank] += static_cast<double>(load[e]) / replicas[e];
  }
  return mean_over_max(ranks);
}

double balancedness(std::span<const int64_t> tokens, int num_ranks) {
  std::vector<double> ranks(num_ranks, 0);
  const size_t per_rank = tokens.size() / static_cast<size_t>(num_ranks);
  for (size_t p = 0; p < tokens.size(); ++p) ranks[p / per_rank] += static_cast<double>(tokens[p]);
  return mean_over_max(ranks);
}

Result<EplbPlan> plan_placement(const std::vector<std::vector<int64_t>>& loads, const ExpertMap& current,
                                const EplbShape& shape, EplbPolicy wanted) {
  MANTA_TRY(check_shape(loads, current, shape));
  MANTA_ASSIGN(const EplbPolicy policy, choose_policy(wanted, shape));
  EplbPlan plan;
  plan.balanced_now = plan.balanced_then = 0;
  std::vector<int32_t> placement;
  for (int layer = 0; layer < current.num_layers; ++layer) {
    const auto now = std::span(current.physical_to_logical)
                         .subspan(static_cast<size_t>(layer) * shape.num_physical, shape.num_physical);
    const std::vector<int32_t> then = place_layer(loads[layer], now, shape, policy);
    plan.balanced_now += predicted_balancedness(loads[layer], now, shape.num_ranks) / current.num_layers;
    plan.balanced_then += predicted_balancedness(loads[layer], then, shape.num_ranks) / current.num_layers;
    for (size_t p = 0; p < then.size(); ++p) plan.num_moves += then[p] != now[p];
    placement.insert(placement.end(), then.begin(), then.end());
  }
  MANTA_ASSIGN(plan.target, expert_map_of(current.num_layers, shape.num_logical, current.max_replicas,
                                          std::move(placement), current.epoch));
  return plan;
}

bool worth_moving(const EplbPlan& plan, double min_gain) {
  if (plan.num_moves == 0) return false;
  return min_gain <= 0 || plan.balanced_then - plan.balanced_now > min_gain;
}

}  // namespace manta::ep
