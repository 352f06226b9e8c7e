// Weights as the cuda backend keeps them: matrices as stored, row-major [out, in], FP8 with its block scales or bf16.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/device.h"
#include "backend/cuda/gemm/block_gemm.h"
#include "backend/model_shape.h"
#include "backend/weights.h"

namespace manta::backend::cuda {

struct MatrixWeight final : PackedWeight {
  size_t num_bytes() const override { return memory.num_bytes(); }
  GemmWeight view() const { return {data, scale, maps}; }
  DeviceMemory memory;
  void* data = nullptr;
  const float* scale = nullptr;
  const CUtensorMap* maps = nullptr;  // see GemmWeight
  bool is_fp8 = false;
  int n = 0;
  int k = 0;
};

// kv_b_proj, absorbed: W_UK of each head transposed [H, C, nope] and W_UV [H, v, C], in bf16.
struct KvUpWeight final : PackedWeight {
  size_t num_bytes() const override { return memory.num_bytes(); }
  DeviceMemory memory;
  __nv_bfloat16* key_up = nullptr;
  __nv_bfloat16* value_up = nullptr;
  const CUtensorMap *key_up_maps = nullptr, *value_up_maps = nullptr;
};

struct VectorWeight final : PackedWeight {
  size_t num_bytes() const override { return memory.num_bytes(); }
  DeviceMemory memory;
  float* values = nullptr;
};

inline const MatrixWeight& matrix(const PackedWeight& w) {
  return static_cast<const MatrixWeight&>(w);
}
inline const MatrixWeight& matrix(const PackedWeightPtr& w) {
  return matrix(*w);
}
inline const float* values(const PackedWeight& w) {
  return static_cast<const VectorWeight&>(w).values;
}
inline const KvUpWeight& kv_up(const PackedWeightPtr& w) {
  return static_cast<const KvUpWeight&>(*w);
}

// pack() of the backend. F32 and F16 matrices become bf16. kInvalidArgument when dtype, rank or shape do not fit.
Result<PackedWeightPtr> pack_weight(const WeightView& weight, WeightRole role, const ModelShape& shape);

// weights.cu: kv_b_proj [H * (nope + v), C], bf16 or FP8 with scales, to its two parts.
struct SplitKvUp {
  const void* stored = nullptr;
  const float* scale = nullptr;  // null: bf16
  int heads = 0, nope = 0, v = 0, latent = 0;
  __nv_bfloat16* key_up = nullptr;
  __nv_bfloat16* value_up = nullptr;
};
void split_kv_up(const SplitKvUp& a, cudaStream_t stream);

}  // namespace manta::backend::cuda
