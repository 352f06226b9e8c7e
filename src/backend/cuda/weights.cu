#include "backend/cuda/common.cuh"
#include "backend/cuda/weights.h"

namespace manta::backend::cuda {
namespace {

constexpr int kSide = 32;

// Tiles of 32 x 32 of one head's rows, so that the transposed part is written in rows too.
__global__ void split_kernel(const __grid_constant__ SplitKvUp a) {
  __shared__ float tile[kSide][kSide + 1];
  const int rows = a.nope + a.v, head = blockIdx.z;
  const int r0 = blockIdx.y * kSide, c0 = blockIdx.x * kSide;
  for (int i = threadIdx.y; i < kSide; i += blockDim.y) {
    const int r = r0 + i, c = c0 + threadIdx.x;
    if (r >= rows || c >= a.latent) continue;
    const int64_t row = int64_t{head} * rows + r, at = row * a.latent + c;
    float x;
    if (a.scale != nullptr) {
      const __half_raw half = __nv_cvt_fp8_to_halfraw(static_cast<const uint8_t*>(a.stored)[at], __NV_E4M3);
      x = __half2float(half) *
          a.scale[row / kScaleBlock * ((a.latent + kScaleBlock - 1) / kScaleBlock) + c / kScaleBlock];
    } else {
      x = __bfloat162float(static_cast<const bf16*>(a.stored)[at]);
    }
    tile[i][threadIdx.x] = x;
    if (r >= a.nope) a.value_up[(int64_t{head} * a.v + r - a.nope) * a.latent + c] = __float2bfloat16_rn(x);
  }
  __syncthreads();
  for (int i = threadIdx.y; i < kSide; i += blockDim.y) {
    const int c = c0 + i, r = r0 + threadIdx.x;
    if (c < a.latent && r < a.nope) {
      a.key_up[(int64_t{head} * a.latent + c) * a.nope + r] = __float2bfloat16_rn(tile[threadIdx.x][i]);
    }
  }
}

}  // namespace

void split_kv_up(const SplitKvUp& a, cudaStream_t stream) {
  const dim3 grid((a.latent + kSide - 1) / kSide, (a.nope + a.v + kSide - 1) / kSide, a.heads);
  split_kernel<<<grid, dim3(kSide, 8), 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
