#include "backend/cuda/norm/norm.h"

#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// One warp turns 128 values (4 a lane) into e4m3 and their scale; `count` of them exist.
__device__ void quantize_group(const float (&v)[4], int count, bool ue8m0, uint8_t* q, float* scale) {
  const int lane = threadIdx.x % 32;
  float amax = 0.0f;
  for (int j = 0; j < 4; ++j) amax = fmaxf(amax, fabsf(v[j]));
  const float s = activation_scale(warp_max(amax), ue8m0);
  if (lane == 0) *scale = s;
  uint32_t packed = 0;
  for (int j = 0; j < 4; ++j) packed |= uint32_t{to_e4m3(v[j], s)} << (8 * j);
  if (lane * 4 + 4 <= count) {
    *reinterpret_cast<uint32_t*>(q + lane * 4) = packed;
  } else {
    for (int j = 0; lane * 4 + j < count; ++j) q[lane * 4 + j] = packed >> (8 * j);
  }
}

__global__ void __launch_bounds__(kThreads) add_rms_norm_kernel(const __grid_constant__ AddRmsNorm a) {
  extern __shared__ float x[];  // [d]
  __shared__ float scratch[33];
  const int64_t row = blockIdx.x;
  const int64_t source = a.source_rows != nullptr ? max(a.source_rows[row], 0) : row;
  const bf16* hidden = a.hidden + source * a.hidden_stride;
  bf16* residual = a.residual == nullptr ? nullptr : a.residual + source * a.d;
  float square = 0.0f;
  for (int c = 2 * threadIdx.x; c < a.d; c += 2 * kThreads) {
    float2 v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(hidden + c));
    if (residual != nullptr) {
      auto* r = reinterpret_cast<__nv_bfloat162*>(residual + c);
      if (a.add_residual) {
        const float2 old = __bfloat1622float2(*r);
        v.x += old.x;
        v.y += old.y;
      }
      *r = __float22bfloat162_rn(v);
    }
    x[c] = v.x;
    x[c + 1] = v.y;
    square += v.x * v.x + v.y * v.y;
  }
  const float mean = block_sum(square, scratch) / static_cast<float>(a.d);
  const float factor = 1.0f / sqrtf(mean + a.eps);
  if (a.out != nullptr) {
    for (int c = threadIdx.x; c < a.d; c += kThreads) {
      const float y = x[c] * factor * a.gain[c];
      const bf16 high = __float2bfloat16_rn(y);
      a.out[row * a.out_stride + c] = high;
      if (a.out_low != nullptr) a.out_low[row * a.out_stride + c] = __float2bfloat16_rn(y - __bfloat162float(high));
    }
  }
  if (a.out_fp8 == nullptr) return;
  const int num_groups = (a.d + kScaleBlock - 1) / kScaleBlock, lane = threadIdx.x % 32;
  for (int g = threadIdx.x / 32; g < num_groups; g += kWarps) {
    float v[4];
    for (int j = 0; j < 4; ++j) {
      const int c = g * kScaleBlock + lane * 4 + j;
      v[j] = c < a.d ? x[c] * factor * a.gain[c] : 0.0f;
    }
    quantize_group(v, a.d - g * kScaleBlock, a.ue8m0, a.out_fp8 + row * a.d + g * kScaleBlock,
                   a.out_scale + row * num_groups + g);
  }
}

__global__ void __launch_bounds__(kThreads) quantize_kernel(const __grid_constant__ QuantizeRows a) {
  const int64_t row = blockIdx.x;
  const int64_t from = a.first + (a.plane_rows > 0 ? row / a.plane_rows * a.plane + row % a.plane_rows : row);
  const int num_groups = (a.d + kScaleBlock - 1) / kScaleBlock, lane = threadIdx.x % 32;
  const int g = blockIdx.y * kWarps + threadIdx.x / 32;
  if (g >= num_groups) return;
  float v[4];
  for (int j = 0; j < 4; ++j) {
    const int c = g * kScaleBlock + lane * 4 + j;
    v[j] = c < a.d ? __bfloat162float(a.x[from * a.x_stride + c]) : 0.0f;
  }
  quantize_group(v, a.d - g * kScaleBlock, a.ue8m0, a.q + row * a.d + g * kScaleBlock, a.scale + row * num_groups + g);
}

__device__ float silu(float x) {
  return x / (1.0f + __expf(-x));
}

__global__ void __launch_bounds__(kThreads) silu_kernel(const __grid_constant__ SiluMultiply a) {
  const int64_t row = blockIdx.x;
  const int num_groups = (a.n + kScaleBlock - 1) / kScaleBlock, lane = threadIdx.x % 32;
  const int g = blockIdx.y * kWarps + threadIdx.x / 32;
  if (g >= num_groups) return;
  const bf16* gate = a.in + row * 2 * a.n;
  const bf16* up = gate + a.n;
  float v[4];
  for (int j = 0; j < 4; ++j) {
    const int c = g * kScaleBlock + lane * 4 + j;
    v[j] = c < a.n ? silu(__bfloat162float(gate[c])) * __bfloat162float(up[c]) : 0.0f;
    if (a.out != nullptr && c < a.n) a.out[row * a.n + c] = __float2bfloat16_rn(v[j]);
  }
  if (a.out_fp8 == nullptr) return;
  quantize_group(v, a.n - g * kScaleBlock, a.ue8m0, a.out_fp8 + row * a.n + g * kScaleBlock,
                 a.out_scale + row * num_groups + g);
}

__global__ void __launch_bounds__(kThreads) embed_kernel(const bf16* table, const int32_t* ids, int d, bf16* out) {
  const int64_t row = blockIdx.x;
  const bf16* from = table + int64_t{ids[row]} * d;
  for (int c = threadIdx.x; c < d; c += kThreads) out[row * d + c] = from[c];
}

__global__ void __launch_bounds__(kThreads)
    merge_kernel(const float* combined, const bf16* shared, bf16* hidden, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const float s = shared != nullptr ? __bfloat162float(shared[i]) : 0.0f;
  hidden[i] = __float2bfloat16_rn(combined[i] + s);
}

dim3 group_grid(int d, int64_t num_rows) {
  const int num_groups = (d + kScaleBlock - 1) / kScaleBlock;
  return dim3(static_cast<unsigned>(num_rows), (num_groups + kWarps - 1) / kWarps);
}

}  // namespace

void add_rms_norm(const AddRmsNorm& a, cudaStream_t stream) {
  if (a.num_rows == 0) return;
  add_rms_norm_kernel<<<a.num_rows, kThreads, a.d * sizeof(float), stream>>>(a);
}

void quantize_rows(const QuantizeRows& a, cudaStream_t stream) {
  if (a.num_rows > 0) quantize_kernel<<<group_grid(a.d, a.num_rows), kThreads, 0, stream>>>(a);
}

void embed_rows(const bf16* table, const int32_t* ids, int num_rows, int d, bf16* out, cudaStream_t stream) {
  if (num_rows == 0) return;
  embed_kernel<<<num_rows, kThreads, 0, stream>>>(table, ids, d, out);
}

void merge_rows(const float* combined, const bf16* shared, bf16* hidden, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  merge_kernel<<<static_cast<unsigned>((n + kThreads - 1) / kThreads), kThreads, 0, stream>>>(combined, shared, hidden,
                                                                                              n);
}

void silu_multiply(const SiluMultiply& a, cudaStream_t stream) {
  if (a.num_rows == 0) return;
  silu_kernel<<<group_grid(a.n, a.num_rows), kThreads, 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
