// What attention's kernels on wgmma do with rows as products leave them: a thread has two rows of a warp's 16, in sums
// (i / 2 % 2) the one or the other, and in each eight columns two side by side.
#pragma once

#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {

// Of a row, over the four threads that share it.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// Most often by 1 in the whole warp.
template <int kCount>
__device__ __forceinline__ void shrink_rows(float (&out)[kCount], const float (&shrink)[2]) {
  if (!__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] *= shrink[i / 2 % 2];
}

// A warp's 16 rows of 128 columns -> bf16 in shared memory, off each other's banks; only load_chunk knows where.
__device__ __forceinline__ void put_rows(uint8_t* to, const float (&sum)[64]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = lane / 4 + 8 * e;
      *reinterpret_cast<__nv_bfloat162*>(to + r * 256 + ((n ^ (r & 7)) * 16) + lane % 4 * 4) =
          __floats2bfloat162_rn(sum[4 * n + 2 * e], sum[4 * n + 2 * e + 1]);
    }
  }
}
__device__ __forceinline__ uint4 load_chunk(const uint8_t* from, int row, int chunk) {
  return *reinterpret_cast<const uint4*>(from + row * 256 + ((chunk ^ (row & 7)) * 16));
}

}  // namespace manta::backend::cuda
