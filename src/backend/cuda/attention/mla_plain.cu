// Any dimensions, one head a block: for models that are not DeepSeek's size.
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {
namespace {

constexpr float kLowest = -INFINITY;
constexpr int kPlainThreads = 128, kMaxPlainLatent = 512;

__global__ void __launch_bounds__(kPlainThreads) mla_plain_kernel(const __grid_constant__ MlaAttention a) {
  extern __shared__ float shared[];  // q [C + R], weights [kPlainThreads], scratch [34]
  const int width = a.latent + a.rope, row = blockIdx.x, head = blockIdx.y;
  float *q = shared, *weights = q + width, *scratch = weights + kPlainThreads;
  const int position = a.positions[row];
  bf16* out = a.out + (int64_t{row} * a.heads + head) * a.latent;
  float sums[kMaxPlainLatent / kPlainThreads] = {};
  float max = kLowest, total = 0.0f;
  if (position >= 0) {
    const bf16* from = a.queries + (int64_t{row} * a.heads + head) * width;
    for (int c = threadIdx.x; c < width; c += kPlainThreads) q[c] = __bfloat162float(from[c]);
    const int32_t* table = a.block_tables + a.req_slot[a.row_req[row]] * a.max_blocks;
    const auto cache_row = [&](int p) {
      return a.cache + (int64_t{table[p / a.block_size]} * a.block_size + p % a.block_size) * width;
    };
    for (int first = 0; first <= position; first += kPlainThreads) {
      __syncthreads();
      const int count = min(kPlainThreads, position + 1 - first);
      float score = kLowest;
      if (threadIdx.x < count) {
        const bf16* k = cache_row(first + threadIdx.x);
        score = 0.0f;
        for (int c = 0; c < width; ++c) score += q[c] * __bfloat162float(k[c]);
        score *= a.softmax_scale;
      }
      const float warp_best = warp_max(score);
      if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = warp_best;
      __syncthreads();
      float now = max;
      for (int w = 0; w < kPlainThreads / 32; ++w) now = fmaxf(now, scratch[w]);
      const float shrink = expf(max - now), weight = threadIdx.x < count ? expf(score - now) : 0.0f;
      max = now;
      weights[threadIdx.x] = weight;
      __syncthreads();
      total = total * shrink + block_sum(weight, scratch);
      for (int j = 0; j < kMaxPlainLatent / kPlainThreads; ++j) {
        const int c = threadIdx.x + j * kPlainThreads;
        if (c >= a.latent) break;
        sums[j] *= shrink;
        for (int i = 0; i < count; ++i) sums[j] += weights[i] * __bfloat162float(cache_row(first + i)[c]);
      }
    }
  }
  for (int j = 0; j < kMaxPlainLatent / kPlainThreads; ++j) {
    const int c = threadIdx.x + j * kPlainThreads;
    if (c < a.latent) out[c] = __float2bfloat16_rn(total > 0.0f ? sums[j] / total : 0.0f);
  }
}

}  // namespace

void mla_plain(const MlaAttention& a, cudaStream_t stream) {
  const size_t bytes = (a.latent + a.rope + kPlainThreads + 34) * sizeof(float);
  mla_plain_kernel<<<dim3(a.num_rows, a.heads), kPlainThreads, bytes, stream>>>(a);
}

}  // namespace manta::backend::cuda
