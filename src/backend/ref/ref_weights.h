// How the reference packs weights: all in float32, matrices transposed to [in, out] so that loops run along outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/model_shape.h"
#include "backend/weights.h"
#include "base/result.h"

namespace manta::backend::ref {

class RefWeight : public PackedWeight {
 public:
  size_t num_bytes() const override { return data.size() * sizeof(float); }

  // kLinear, kGate, kHead: [in, out]. kEmbedding: [vocab, D] as stored. kNorm, kBias: [n].
  // kKvUp: W_UK of every head [H, nope, C], then W_UV of every head [H, C, v].
  std::vector<float> data;
  int64_t in = 0;
  int64_t out = 0;
  bool is_fp8 = false;  // was stored as FP8: with dynamic activations its input is quantised too
};

inline const RefWeight& unpacked(const PackedWeight& weight) {
  return static_cast<const RefWeight&>(weight);
}
inline const RefWeight& unpacked(const PackedWeightPtr& weight) {
  return static_cast<const RefWeight&>(*weight);
}

Result<PackedWeightPtr> pack_ref_weight(const WeightView& weight, WeightRole role, const ModelShape& shape);

}  // namespace manta::backend::ref
