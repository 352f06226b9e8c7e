// C = A x W^T for every linear layer: A bf16 or FP8 with a scale per row and 128 of k (those of one piece of k side by
// side), W [n, k] bf16 or FP8 with a
// scale per 128 x 128, sums in float32, scales applied to each 128 of k (as DeepSeek's kernels do). FP8 beside bf16
// enters the tensor cores as the equal bf16; FP8 on both sides stays FP8. Products that wgmma and the copy engine can
// do go to tile_gemm.h, the rest to mma.sync (block_gemm.cuh).
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace manta::backend::cuda {

// Where the rows of several experts stand; counts are read on the device. The window bounds what a pass works on, so
// that the inner rows of a pass fit their buffer.
struct RowGroups {
  const int32_t* counts = nullptr;  // masked: rows of each group [num_groups]; else offsets [num_groups + 1]
  bool masked = false;
  int num_groups = 0;
  int64_t plane = 0;  // masked: rows between two groups
  // Contiguous: rows [window_begin, + window_rows) of all. Masked: those rows of each group.
  int window_begin = 0;
  int window_rows = 0;
};

struct GemmWeight {
  const void* data = nullptr;
  const float* scale = nullptr;       // [ceil(n/128), ceil(k/128)], FP8 only
  const CUtensorMap* maps = nullptr;  // in device memory, one for each of kWeightBoxRows; null: none can be made
};
constexpr int kWeightBoxRows[] = {128, 192, 112, 96, 64, 32};
constexpr int weight_map_index(int box_rows) {
  int i = 0;
  while (kWeightBoxRows[i] != box_rows) ++i;
  return i;
}

struct BlockGemm {
  const void* a = nullptr;         // [m, k]
  const float* a_scale = nullptr;  // [ceil(k/128), a_scale_stride]: a is FP8
  int64_t a_scale_stride = 0;      // a multiple of 4, at least as many as A has rows
  int64_t a_stride = 0;
  bool w_fp8 = false;
  int n = 0;
  int k = 0;          // a multiple of 8
  int num_parts = 1;  // matrices of equal shape whose outputs stand side by side, n columns each: W gate and W up
  void* c = nullptr;
  bool c_f32 = false;       // else bf16
  bool accumulate = false;  // c += (f32 only)
  int64_t c_stride = 0;
  int m = 0;
  // Batched: grid of independent products with these strides, in elements (of W: of one weight's data).
  int num_batches = 1;
  int64_t a_batch = 0, w_batch = 0, c_batch = 0;
  int64_t w_stride = 0;  // between rows of W, 0: k. With batches along k: split-K into separate C
  // Grouped: m is ignored. Which of A and C is the expert batch (rows as groups say); the other is packed per window.
  RowGroups groups;
  bool a_is_batch = false, c_is_batch = false;
};

// weights: [num_parts]
void block_gemm(const BlockGemm& g, const GemmWeight* weights, cudaStream_t stream);
// weights: [groups.num_groups * num_parts], at most kMaxGroupedWeights.
constexpr int kMaxGroupedWeights = 1024;
void grouped_block_gemm(const BlockGemm& g, const GemmWeight* weights, cudaStream_t stream);

// Lets the kernels use the shared memory they need; once, before the first launch. Returns a CUDA error code.
int prepare_block_gemm();

}  // namespace manta::backend::cuda
