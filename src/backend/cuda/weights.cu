#include <algorithm>

#include "backend/cuda/common.cuh"
#include "backend/cuda/weight_upload.h"
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

template <bool kFp8>
__global__ void random_kernel(uint64_t* to, size_t num_bytes, uint64_t key, float step) {
  const size_t stride = size_t{gridDim.x} * blockDim.x, num_words = num_bytes / 8;
  const auto word = [=](size_t i) { return kFp8 ? random_fp8_word(key, i) : random_bf16_word(key, i, 0.0f, step); };
  const size_t first = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (size_t i = first; i < num_words; i += stride) to[i] = word(i);
  if (first < num_bytes % 8) {
    reinterpret_cast<uint8_t*>(to + num_words)[first] = static_cast<uint8_t>(word(num_words) >> 8 * first);
  }
}

}  // namespace

void fill_random_words(void* to, DType dtype, size_t num_bytes, const RandomMatrix& values, cudaStream_t stream) {
  constexpr int kThreads = 256, kMostBlocks = 1024;
  const int blocks = static_cast<int>(std::clamp<size_t>(num_bytes / 8 / kThreads, 1, kMostBlocks));
  auto* words = static_cast<uint64_t*>(to);
  if (dtype == DType::kF8E4M3) {
    random_kernel<true><<<blocks, kThreads, 0, stream>>>(words, num_bytes, values.key, 0.0f);
  } else {
    random_kernel<false><<<blocks, kThreads, 0, stream>>>(words, num_bytes, values.key, uniform_step(values.deviation));
  }
}

void split_kv_up(const SplitKvUp& a, cudaStream_t stream) {
  const dim3 grid((a.latent + kSide - 1) / kSide, (a.nope + a.v + kSide - 1) / kSide, a.heads);
  split_kernel<<<grid, dim3(kSide, 8), 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
