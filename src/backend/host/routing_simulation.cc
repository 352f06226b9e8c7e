#include "backend/host/routing_simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "sample/philox.h"

namespace manta::backend::host {
namespace {

// Random numbers of one token in one layer.
class Draws {
 public:
  Draws(int layer, int32_t position, int32_t token)
      : key_{static_cast<uint32_t>(layer), static_cast<uint32_t>(token)}, position_(static_cast<uint32_t>(position)) {}

  double uniform() {  // in (0, 1)
    if (next_ % 4 == 0) block_ = sample::philox4x32(key_, {position_, next_ / 4, 0x65787074, 0});
    return sample::open_uniform(block_[next_++ % 4]);
  }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * std::numbers::pi * uniform()); }

 private:
  sample::PhiloxKey key_;
  uint32_t position_;
  uint32_t next_ = 0;
  sample::PhiloxCounter block_{};
};

bool holds(std::span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Result<RoutingSimulation> parse_routing_simulation(const std::string& name) {
  if (name.empty()) return RoutingSimulation::kNone;
  if (name == "uniform_random") return RoutingSimulation::kUniformRandom;
  if (name == "normal_routing") return RoutingSimulation::kNormal;
  return error(ErrorCode::kInvalidArgument,
               fmt::format("moe_routing_simulation_strategy {}: there are uniform_random and normal_routing", name));
}

void simulate_routing(RoutingSimulation simulation, const ModelShape& shape, int layer, int32_t position, int32_t token,
                      std::span<int32_t> ids, std::span<float> weights) {
  Draws draws(layer, position, token);
  const int num_experts = shape.n_routed_experts;
  float sum = 0;
  for (size_t k = 0; k < ids.size(); ++k) {
    const double at = simulation == RoutingSimulation::kNormal ? 1 / (1 + std::exp(-draws.normal())) : draws.uniform();
    auto id = std::min(static_cast<int32_t>(at * num_experts), num_experts - 1);
    // Taken already: uniform draws again (sets stay equally likely), normal takes the next free one up (the middle may
    // be full).
    while (holds(ids.first(k), id)) {
      id = simulation == RoutingSimulation::kNormal
               ? (id + 1) % num_experts
               : std::min(static_cast<int32_t>(draws.uniform() * num_experts), num_experts - 1);
    }
    ids[k] = id;
    weights[k] = simulation == RoutingSimulation::kNormal ? static_cast<float>(std::abs(draws.normal())) + 1e-6f : 1.0f;
    sum += weights[k];
  }
  for (float& w : weights) w = w / sum * shape.routed_scaling_factor;
}

}  // namespace manta::backend::host
