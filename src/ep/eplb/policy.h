// Where experts should live, given how many tokens each one got: DeepSeek's two placement policies as pure functions.
// Every rank computes the plan from the same numbers and gets the same answer: no clocks, no hashing, ties by index.
//
//   global        replicas go to the experts with the most tokens per replica; replicas are packed to ranks, heaviest
//                 first, each to the lightest rank that has room.
//   hierarchical  first packs whole expert groups to nodes in the same way, then does the above inside each node.
//   Tokens
//                 choose few groups (group-limited routing), so a token's experts stay on few nodes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "ep/expert_map.h"

namespace manta::ep {

enum class EplbPolicy { kAuto, kHierarchical, kGlobal };
const char* to_string(EplbPolicy policy);

struct EplbShape {
  int num_logical = 0;   // E, experts of the checkpoint
  int num_physical = 0;  // P, slots over all ranks
  int num_ranks = 1;     // rank r owns slots [r * P / n, (r + 1) * P / n)
  int num_nodes = 1;     // ranks of a node are consecutive
  int num_groups = 1;    // of the router; 1 = routing knows no groups
};

// kAuto: hierarchical where there are several nodes and the groups divide by them, else global. Asking for hierarchical
// where groups or slots do not divide is an error with the numbers.
Result<EplbPolicy> choose_policy(EplbPolicy wanted, const EplbShape& shape);

// The expert of every slot of one layer, [P]. load: tokens of each logical expert, [E]. current: the layer's placement
// now, [P]: experts that stay on their rank keep their slot, so that only what changes rank moves. A layer without
// tokens stays as it is. policy: a result of choose_policy.
std::vector<int32_t> place_layer(std::span<const int64_t> load, std::span<const int32_t> current,
                                 const EplbShape& shape, EplbPolicy policy);

// Mean over ranks / max over ranks of the tokens a rank would work on, when every expert's tokens spread evenly over
// its replicas; 1 = perfect, and 1 where there are no tokens.
double predicted_balancedness(std::span<const int64_t> load, std::span<const int32_t> physical_to_logical,
                              int num_ranks);
// The same of tokens counted per slot, [P].
double balancedness(std::span<const int64_t> tokens, int num_ranks);

struct EplbPlan {
  ExpertMap target;         // at the current map's epoch
  double balanced_now = 1;  // predicted, mean over the layers
  double balanced_then = 1;
  int num_moves = 0;  // slots whose expert changes
};

// All layers at once. loads: [num_layers][E].
Result<EplbPlan> plan_placement(const std::vector<std::vector<int64_t>>& loads, const ExpertMap& current,
                                const EplbShape& shape, EplbPolicy wanted);

// Whether a plan is worth its moves. min_gain 0: always, when anything moves at all.
bool worth_moving(const EplbPlan& plan, double min_gain);

}  // namespace manta::ep
