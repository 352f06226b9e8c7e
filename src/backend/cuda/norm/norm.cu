#include "backend/cuda/norm/norm.h"

#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {
namespace {

constexpr int kThreads = 256, kNormThreads = 512;
constexpr int kChunk = 8;                            // values of a thread: 16 bytes of bf16
constexpr int kGroupThreads = kScaleBlock / kChunk;  // that share a scale

__device__ __forceinline__ void load_chunk(const bf16* from, float (&v)[kChunk]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&words);
#pragma unroll
  for (int i = 0; i < kChunk / 2; ++i) {
    const float2 two = __bfloat1622float2(pairs[i]);
    v[2 * i] = two.x;
    v[2 * i + 1] = two.y;
  }
}
__device__ __forceinline__ void store_chunk(bf16* to, const float (&v)[kChunk]) {
  uint4 words;
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&words);
#pragma unroll
  for (int i = 0; i < kChunk / 2; ++i) pairs[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
  *reinterpret_cast<uint4*>(to) = words;
}

// The chunks of 16 neighbouring threads become e4m3 with one scale; `there`: this thread's chunk exists.
__device__ __forceinline__ void quantize_chunk(const float (&v)[kChunk], bool there, bool ue8m0, uint8_t* q,
                                               float* scale) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) amax = fmaxf(amax, fabsf(v[i]));
#pragma unroll
  for (int d = kGroupThreads / 2; d > 0; d /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, d));
  const float s = activation_scale(amax, ue8m0);
  if (!there) return;
  if (threadIdx.x % kGroupThreads == 0) *scale = s;
  uint2 packed = make_uint2(0, 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    packed.x |= uint32_t{to_e4m3(v[i], s)} << (8 * i);
    packed.y |= uint32_t{to_e4m3(v[i + 4], s)} << (8 * i);
  }
  *reinterpret_cast<uint2*>(q) = packed;
}

__global__ void __launch_bounds__(kNormThreads) add_rms_norm_kernel(const __grid_constant__ AddRmsNorm a) {
  extern __shared__ float4 shared[];  // [d] floats
  __shared__ float scratch[33];
  float* x = reinterpret_cast<float*>(shared);
  const int64_t row = blockIdx.x;
  const int64_t source = a.source_rows != nullptr ? max(a.source_rows[row], 0) : row;
  const bf16* hidden = a.hidden + source * a.hidden_stride;
  bf16* residual = a.residual == nullptr ? nullptr : a.residual + source * a.d;
  float square = 0.0f;
  for (int c = kChunk * threadIdx.x; c < a.d; c += kChunk * kNormThreads) {
    float v[kChunk];
    load_chunk(hidden + c, v);
    if (residual != nullptr) {
      if (a.add_residual) {
        float old[kChunk];
        load_chunk(residual + c, old);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[i] += old[i];
      }
      store_chunk(residual + c, v);
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) square += v[i] * v[i];
    *reinterpret_cast<float4*>(x + c) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(x + c + 4) = make_float4(v[4], v[5], v[6], v[7]);
  }
  const float mean = block_sum(square, scratch) / static_cast<float>(a.d);
  const float factor = 1.0f / sqrtf(mean + a.eps);
  for (int first = 0; first < a.d; first += kChunk * kNormThreads) {  // whole warps: groups meet in shuffles
    const int c = first + kChunk * threadIdx.x;
    const bool there = c < a.d;
    float v[kChunk] = {};
    if (there) {
#pragma unroll
      for (int i = 0; i < kChunk; i += 4) {
        const float4 y = *reinterpret_cast<const float4*>(x + c + i);
        const float4 gain = *reinterpret_cast<const float4*>(a.gain + c + i);
        v[i] = y.x * factor * gain.x;
        v[i + 1] = y.y * factor * gain.y;
        v[i + 2] = y.z * factor * gain.z;
        v[i + 3] = y.w * factor * gain.w;
      }
      if (a.out != nullptr) store_chunk(a.out + row * a.out_stride + c, v);
      if (a.out_low != nullptr) {
        float low[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) low[i] = v[i] - __bfloat162float(__float2bfloat16_rn(v[i]));
        store_chunk(a.out_low + row * a.out_stride + c, low);
      }
    }
    if (a.out_fp8 != nullptr) {
      if (a.quantize_out) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[i] = __bfloat162float(__float2bfloat16_rn(v[i]));
      }
      quantize_chunk(v, there, a.ue8m0, a.out_fp8 + row * a.d + c,
                     a.out_scale + c / kScaleBlock * a.scale_stride + row);
    }
  }
}

// Whether a row of a window holds anything, by the device's own counts.
__device__ __forceinline__ bool is_filled(const WindowRows& w, int64_t row) {
  if (w.counts == nullptr) return true;
  return w.plane_rows > 0 ? w.first + row % w.plane_rows < w.counts[row / w.plane_rows] : w.first + row < *w.counts;
}

__global__ void __launch_bounds__(kThreads) quantize_kernel(const __grid_constant__ QuantizeRows a) {
  const int64_t row = blockIdx.x;
  if (!is_filled(a.window, row)) return;
  const WindowRows& w = a.window;
  const int64_t from = w.first + (w.plane_rows > 0 ? row / w.plane_rows * a.plane + row % w.plane_rows : row);
  const int c = (blockIdx.y * kThreads + threadIdx.x) * kChunk;
  const bool there = c < a.d;
  float v[kChunk] = {};
  if (there) load_chunk(a.x + from * a.x_stride + c, v);
  quantize_chunk(v, there, a.ue8m0, a.q + row * a.d + c, a.scale + c / kScaleBlock * a.scale_stride + row);
}

__device__ float silu(float x) {
  return x / (1.0f + __expf(-x));
}

__global__ void __launch_bounds__(kThreads) silu_kernel(const __grid_constant__ SiluMultiply a) {
  const int64_t row = blockIdx.x;
  if (!is_filled(a.window, row)) return;
  const int c = (blockIdx.y * kThreads + threadIdx.x) * kChunk;
  const bool there = c < a.n;
  float v[kChunk] = {};
  if (there) {
    float gate[kChunk], up[kChunk];
    load_chunk(a.in + row * 2 * a.n + c, gate);
    load_chunk(a.in + (row * 2 + 1) * a.n + c, up);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = silu(gate[i]) * up[i];
    if (a.out != nullptr) store_chunk(a.out + row * a.n + c, v);
  }
  if (a.out_fp8 == nullptr) return;
  quantize_chunk(v, there, a.ue8m0, a.out_fp8 + row * a.n + c, a.out_scale + c / kScaleBlock * a.scale_stride + row);
}

__global__ void __launch_bounds__(kThreads) embed_kernel(const bf16* table, const int32_t* ids, int d, bf16* out) {
  const int64_t row = blockIdx.x;
  const auto* from = reinterpret_cast<const uint4*>(table + int64_t{max(ids[row], 0)} * d);
  for (int c = threadIdx.x; c < d / kChunk; c += kThreads) reinterpret_cast<uint4*>(out + row * d)[c] = from[c];
}

__global__ void __launch_bounds__(kThreads)
    merge_kernel(const float* combined, const bf16* shared, bf16* hidden, int64_t n) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kChunk;
  if (i >= n) return;
  float v[kChunk] = {};
  if (shared != nullptr) load_chunk(shared + i, v);
#pragma unroll
  for (int j = 0; j < kChunk; j += 4) {
    const float4 c = *reinterpret_cast<const float4*>(combined + i + j);
    v[j] = c.x + v[j];
    v[j + 1] = c.y + v[j + 1];
    v[j + 2] = c.z + v[j + 2];
    v[j + 3] = c.w + v[j + 3];
  }
  store_chunk(hidden + i, v);
}

dim3 chunk_grid(int d, int64_t num_rows) {
  return dim3(static_cast<unsigned>(num_rows), (d + kChunk * kThreads - 1) / (kChunk * kThreads));
}

}  // namespace

void add_rms_norm(const AddRmsNorm& a, cudaStream_t stream) {
  if (a.num_rows == 0) return;
  add_rms_norm_kernel<<<a.num_rows, kNormThreads, a.d * sizeof(float), stream>>>(a);
}

void quantize_rows(const QuantizeRows& a, cudaStream_t stream) {
  if (a.num_rows > 0) quantize_kernel<<<chunk_grid(a.d, a.num_rows), kThreads, 0, stream>>>(a);
}

void embed_rows(const bf16* table, const int32_t* ids, int num_rows, int d, bf16* out, cudaStream_t stream) {
  if (num_rows == 0) return;
  embed_kernel<<<num_rows, kThreads, 0, stream>>>(table, ids, d, out);
}

void merge_rows(const float* combined, const bf16* shared, bf16* hidden, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>((n / kChunk + kThreads - 1) / kThreads);
  merge_kernel<<<blocks, kThreads, 0, stream>>>(combined, shared, hidden, n);
}

void silu_multiply(const SiluMultiply& a, cudaStream_t stream) {
  if (a.num_rows == 0) return;
  silu_kernel<<<chunk_grid(a.n, a.num_rows), kThreads, 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
