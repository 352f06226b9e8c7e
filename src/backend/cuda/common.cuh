// What several kernels share. Device code only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace manta::backend::cuda {

using bf16 = __nv_bfloat16;

constexpr int kScaleBlock = 128;  // of DeepSeek's FP8: weights 128 x 128, activations 1 x 128

__device__ __forceinline__ float warp_sum(float x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

// The sum over a block of whole warps, for every thread. `scratch`: 33 floats; free to reuse when it returns.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  const int warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[warp] = x;
  __syncthreads();
  if (warp == 0) {
    float y = threadIdx.x < num_warps ? scratch[threadIdx.x] : 0.0f;
    y = warp_sum(y);
    if (threadIdx.x == 0) scratch[32] = y;
  }
  __syncthreads();
  x = scratch[32];
  __syncthreads();
  return x;
}

// DeepSeek's dynamic scale of a group of 128: amax / 448, with ue8m0 rounded up to a power of two. 0 for zeros.
__device__ __forceinline__ float activation_scale(float amax, bool ue8m0) {
  float scale = __fdiv_rn(amax, 448.0f);
  if (ue8m0 && scale > 0.0f && scale < INFINITY) {
    int exponent;
    const float fraction = frexpf(scale, &exponent);
    scale = ldexpf(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
  }
  return scale;
}

__device__ __forceinline__ uint8_t to_e4m3(float x, float scale) {
  if (scale == 0.0f) return 0;
  return __nv_cvt_float_to_fp8(__fdiv_rn(x, scale), __NV_SATFINITE, __NV_E4M3);
}

// Four e4m3 bytes b0..b3 as bf16 pairs (b0, b2) and (b1, b3), exactly: the bits are moved into place, which leaves the
// exponent 120 too small, and a multiplication puts that right (subnormals too).
__device__ __forceinline__ void e4m3x4_to_bf16(uint32_t bytes, uint32_t& even, uint32_t& odd) {
  constexpr uint32_t kSign = 0x80008000u, kRest = 0x07f007f0u;
  const uint32_t low = bytes << 8;
  even = (low & kSign) | ((low >> 4) & kRest);
  odd = (bytes & kSign) | ((bytes >> 4) & kRest);
  const __nv_bfloat162 scale = __float2bfloat162_rn(0x1p120f);
  reinterpret_cast<__nv_bfloat162&>(even) = __hmul2(reinterpret_cast<__nv_bfloat162&>(even), scale);
  reinterpret_cast<__nv_bfloat162&>(odd) = __hmul2(reinterpret_cast<__nv_bfloat162&>(odd), scale);
}

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes (or zeros: bytes = 0) into shared memory, asynchronously.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, int bytes) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void copy_async_8(void* to, const void* from, int bytes) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;");
}
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
}

}  // namespace manta::backend::cuda
