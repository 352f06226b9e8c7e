// Which experts a token goes to, given its router logits: the discrete part of route(), the same on every CPU backend.
// Source: DeepSeek-V3 report §2.1.2 and MoEGate of its code (noaux_tc); MoEGate of DeepSeek-V2 (softmax,
// group_limited_greedy).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/host/routing_simulation.h"
#include "backend/model_shape.h"
#include "ep/expert_map.h"

namespace manta::backend::host {

// The slot that serves logical expert `id` of layer `layer` of the map for a token at this position. It depends on
// nothing else, so that no batch changes it; replicas hold identical bytes, so it changes no value either.
inline int32_t physical_expert(const ep::ExpertMap& map, int layer, int32_t id, int32_t position) {
  const int64_t logical = static_cast<int64_t>(layer) * map.num_logical + id;
  const int32_t replica = position % map.logical_replica_count[logical];
  return map.logical_to_physical[logical * map.max_replicas + replica];
}

// Scratch of one thread; allocates when made and never after.
class Router {
 public:
  explicit Router(const ModelShape& shape, RoutingSimulation simulation = RoutingSimulation::kNone);

  // logits [n_routed_experts]; bias likewise or null. The bias chooses, it does not weigh. Groups that were not chosen
  // are out altogether, whatever the sign of a biased score. Equal scores: the lower id, of groups as of experts.
  // ids, weights [top_k]: logical experts by falling biased score, weights with normalisation and scaling factor.
  // Logits that are not finite give some valid choice.
  void choose(const float* logits, const float* bias, std::span<int32_t> ids, std::span<float> weights);

  // The slots of one row's experts, and their weights: chosen as above, or simulated. A padding row (position -1): -1.
  struct Row {
    int layer = 0;  // of the map
    int32_t position = -1;
    int32_t token = 0;
  };
  void route(const Row& row, const float* logits, const float* bias, const ep::ExpertMap& map, std::span<int32_t> ids,
             std::span<float> weights);

 private:
  void score(const float* logits, const float* bias);
  void drop_groups();

  ModelShape shape_;
  RoutingSimulation simulation_;
  std::vector<float> scores_;  // [E]
  std::vector<float> choice_;  // [E]: scores + bias, -inf where not to be chosen
  std::vector<float> groups_;  // [n_group]
};

}  // namespace manta::backend::host
