#include "backend/cuda/attention/attention.h"
#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {
namespace {

__device__ __nv_bfloat162 rotate(float a, float b, float c, float s) {
  return __floats2bfloat162_rn(a * c - b * s, b * c + a * s);
}

// Eight values a thread: four rotations.
__global__ void __launch_bounds__(256) rope_kernel(const __grid_constant__ RopeQueries a) {
  const int64_t row = blockIdx.x;
  const int pairs = a.rope / 2, position = max(a.positions[row], 0), chunks = a.rope / 8;
  const int i = blockIdx.y * 256 + threadIdx.x;
  if (i >= a.heads * chunks) return;
  const int64_t head = row * a.heads + i / chunks;
  const int chunk = i % chunks;
  const float4 cos = *reinterpret_cast<const float4*>(a.cos + int64_t{position} * pairs + chunk * 4);
  const float4 sin = *reinterpret_cast<const float4*>(a.sin + int64_t{position} * pairs + chunk * 4);
  const uint4 from = *reinterpret_cast<const uint4*>(a.q + head * (a.nope + a.rope) + a.nope + chunk * 8);
  const auto* in = reinterpret_cast<const __nv_bfloat162*>(&from);
  const float c[4] = {cos.x, cos.y, cos.z, cos.w}, s[4] = {sin.x, sin.y, sin.z, sin.w};
  uint4 to;
  auto* out = reinterpret_cast<__nv_bfloat162*>(&to);
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const float2 v = __bfloat1622float2(in[p]);
    out[p] = rotate(v.x, v.y, c[p], s[p]);
  }
  *reinterpret_cast<uint4*>(a.queries + head * (a.latent + a.rope) + a.latent + chunk * 8) = to;
}

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) latents_kernel(const __grid_constant__ WriteLatents a) {
  __shared__ float scratch[33];
  const int64_t row = blockIdx.x, to_row = a.slot_mapping[row];
  if (to_row < 0) return;
  const float* kv = a.kv + row * a.kv_stride;
  float square = 0.0f;
  for (int c = threadIdx.x; c < a.latent; c += kThreads) square += kv[c] * kv[c];
  const float factor = 1.0f / sqrtf(block_sum(square, scratch) / static_cast<float>(a.latent) + a.eps);
  bf16* to = a.cache + to_row * (a.latent + a.rope);
  for (int c = threadIdx.x; c < a.latent; c += kThreads) to[c] = __float2bfloat16_rn(kv[c] * factor * a.gain[c]);
  const int pairs = a.rope / 2;
  const float* cos = a.cos + int64_t{a.positions[row]} * pairs;
  const float* sin = a.sin + int64_t{a.positions[row]} * pairs;
  for (int p = threadIdx.x; p < pairs; p += kThreads) {
    reinterpret_cast<__nv_bfloat162*>(to + a.latent)[p] =
        rotate(kv[a.latent + 2 * p], kv[a.latent + 2 * p + 1], cos[p], sin[p]);
  }
}

}  // namespace

void rope_queries(const RopeQueries& a, cudaStream_t stream) {
  if (a.num_rows == 0) return;
  rope_kernel<<<dim3(a.num_rows, (a.heads * (a.rope / 8) + 255) / 256), 256, 0, stream>>>(a);
}

void write_latents(const WriteLatents& a, cudaStream_t stream) {
  if (a.num_rows > 0) latents_kernel<<<a.num_rows, kThreads, 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
