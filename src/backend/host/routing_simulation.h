// Replaces the router, for benches of dispatch and expert load without a trained model's skew. What comes out of the
// model is meaningless then. A token's experts depend on (layer, position, token id) only, so that every topology still
// computes the same.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "backend/model_shape.h"
#include "base/result.h"

namespace manta::backend::host {

enum class RoutingSimulation { kNone, kUniformRandom, kNormal };

// "", "uniform_random" or "normal_routing" (VLLM_MOE_ROUTING_SIMULATION_STRATEGY).
Result<RoutingSimulation> parse_routing_simulation(const std::string& name);

// ids, weights [top_k]: distinct logical experts.
//   uniform_random  every set of experts is as likely as any other; equal weights.
//   normal_routing  expert numbers are sigmoid(N(0, 1)) x E, so the middle ones are busy; weights |N(0, 1)|,
//   normalised.
// Weights sum to the model's routed_scaling_factor, so that hidden states stay at the scale the model was made for.
void simulate_routing(RoutingSimulation simulation, const ModelShape& shape, int layer, int32_t position, int32_t token,
                      std::span<int32_t> ids, std::span<float> weights);

}  // namespace manta::backend::host
