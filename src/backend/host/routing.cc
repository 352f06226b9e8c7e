#include "backend/host/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace manta::backend::host {
namespace {

constexpr float kOut = -std::numeric_limits<float>::infinity();

// Index of the largest value, the first of equals; 0 when nothing compares (NaN, all out).
int best_of(const std::vector<float>& values) {
  int best = 0;
  float best_value = kOut;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] > best_value) {
      best_value = values[i];
      best = static_cast<int>(i);
    }
  }
  return best;
}

}  // namespace

Router::Router(const ModelShape& shape, RoutingSimulation simulation)
    : shape_(shape),
      simulation_(simulation),
      scores_(shape.n_routed_experts),
      choice_(shape.n_routed_experts),
      groups_(shape.n_group) {}

void Router::score(const float* logits, const float* bias) {
  const int n = shape_.n_routed_experts;
  if (shape_.scoring_func == ScoringFunc::kSigmoid) {
    for (int e = 0; e < n; ++e) scores_[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  } else {
    const float max = *std::max_element(logits, logits + n);
    float sum = 0.0f;
    for (int e = 0; e < n; ++e) sum += scores_[e] = std::exp(logits[e] - max);
    for (float& s : scores_) s /= sum;
  }
  for (int e = 0; e < n; ++e) choice_[e] = bias == nullptr ? scores_[e] : scores_[e] + bias[e];
}

void Router::drop_groups() {
  const int size = shape_.n_routed_experts / shape_.n_group;
  for (int g = 0; g < shape_.n_group; ++g) {
    float first = kOut, second = kOut;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      second = std::max(second, std::min(first, choice_[e]));
      first = std::max(first, choice_[e]);
    }
    groups_[g] = shape_.group_limited_by_top2_sum && size > 1 ? first + second : first;
  }
  // Mark the chosen groups with NaN, which best_of() passes over.
  for (int i = 0; i < shape_.topk_group; ++i) groups_[best_of(groups_)] = std::numeric_limits<float>::quiet_NaN();
  for (int g = 0; g < shape_.n_group; ++g) {
    if (groups_[g] == groups_[g]) std::fill_n(choice_.begin() + g * size, size, kOut);
  }
}

void Router::choose(const float* logits, const float* bias, std::span<int32_t> ids, std::span<float> weights) {
  score(logits, bias);
  if (shape_.topk_group < shape_.n_group) drop_groups();
  float sum = 0.0f;
  for (size_t k = 0; k < ids.size(); ++k) {
    ids[k] = best_of(choice_);
    choice_[ids[k]] = kOut;
    weights[k] = scores_[ids[k]];
    sum += weights[k];
  }
  const float divisor = shape_.norm_topk_prob ? sum + 1e-20f : 1.0f;
  for (float& w : weights) w = w / divisor * shape_.routed_scaling_factor;
}

void Router::route(const Row& row, const float* logits, const float* bias, const ep::ExpertMap& map,
                   std::span<int32_t> ids, std::span<float> weights) {
  if (row.position < 0) {
    std::fill(ids.begin(), ids.end(), -1);
    std::fill(weights.begin(), weights.end(), 0.0f);
    return;
  }
  if (simulation_ == RoutingSimulation::kNone) {
    choose(logits, bias, ids, weights);
  } else {
    simulate_routing(simulation_, shape_, row.layer, row.position, row.token, ids, weights);
  }
  for (int32_t& id : ids) id = physical_expert(map, row.layer, id, row.position);
}

}  // namespace manta::backend::host
