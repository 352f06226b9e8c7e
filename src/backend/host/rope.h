// The rotary angles of DeepSeek's decoupled RoPE, with its YaRN.
// The checkpoint stores the rotary part of a query or key interleaved: values 2i and 2i + 1 are one pair. It stays so
// here and in the cache; Hugging Face moves the pairs apart first, which permutes q and k alike and changes no score.
// Source: DeepSeek-V3's modeling_deepseek.py (DeepseekV3YarnRotaryEmbedding) and transformers'
// _compute_yarn_parameters.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/model_shape.h"

namespace manta::backend::host {

class RopeTable {
 public:
  // For positions [0, num_positions). Angles are position x frequency in float32, as the reference computes them.
  RopeTable(const ModelShape& shape, int num_positions);

  // Rotates the pairs of values [qk_rope_head_dim], in place.
  void rotate(float* values, int position) const;

  // [qk_rope_head_dim / 2] each, YaRN's mscale ratio included.
  const float* cos(int position) const { return &cos_[static_cast<int64_t>(position) * num_pairs_]; }
  const float* sin(int position) const { return &sin_[static_cast<int64_t>(position) * num_pairs_]; }

 private:
  int num_pairs_;
  std::vector<float> cos_, sin_;
};

// The angle per position of each pair, [qk_rope_head_dim / 2].
std::vector<float> rope_frequencies(const ModelShape& shape);

}  // namespace manta::backend::host
