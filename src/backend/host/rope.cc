#include "backend/host/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace manta::backend::host {
namespace {

// The pair that turns `rotations` times over the original context.
double correction_dim(const ModelShape& s, double rotations) {
  return s.qk_rope_head_dim * std::log(s.yarn.original_max_position_embeddings / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(static_cast<double>(s.rope_theta)));
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

std::vector<float> rope_frequencies(const ModelShape& s) {
  const int dim = s.qk_rope_head_dim;
  std::vector<float> frequencies(dim / 2);
  double low = std::floor(correction_dim(s, s.yarn.beta_fast));
  double high = std::ceil(correction_dim(s, s.yarn.beta_slow));
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;  // as the reference does, to avoid a division by zero
  for (int i = 0; i < dim / 2; ++i) {
    const float base = std::pow(s.rope_theta, static_cast<float>(2 * i) / static_cast<float>(dim));
    frequencies[i] = 1.0f / base;
    if (!s.yarn.enabled) continue;
    // Fast pairs keep their frequency, slow ones are stretched by the factor, those between are blended.
    const float stretch = std::clamp(static_cast<float>((i - low) / (high - low)), 0.0f, 1.0f);
    frequencies[i] = 1.0f / (s.yarn.factor * base) * stretch + frequencies[i] * (1.0f - stretch);
  }
  return frequencies;
}

RopeTable::RopeTable(const ModelShape& s, int num_positions) : num_pairs_(s.qk_rope_head_dim / 2) {
  const std::vector<float> frequencies = rope_frequencies(s);
  double scale = 1.0;
  if (s.yarn.enabled) {
    scale = yarn_mscale(s.yarn.factor, s.yarn.mscale) / yarn_mscale(s.yarn.factor, s.yarn.mscale_all_dim);
  }
  cos_.reserve(static_cast<size_t>(num_positions) * num_pairs_);
  sin_.reserve(cos_.capacity());
  for (int position = 0; position < num_positions; ++position) {
    for (float frequency : frequencies) {
      const double angle = static_cast<float>(position) * frequency;
      cos_.push_back(static_cast<float>(std::cos(angle) * scale));
      sin_.push_back(static_cast<float>(std::sin(angle) * scale));
    }
  }
}

void RopeTable::rotate(float* values, int position) const {
  const float *c = cos(position), *s = sin(position);
  for (int i = 0; i < num_pairs_; ++i) {
    const float a = values[2 * i], b = values[2 * i + 1];
    values[2 * i] = a * c[i] - b * s[i];
    values[2 * i + 1] = b * c[i] + a * s[i];
  }
}

}  // namespace manta::backend::host
