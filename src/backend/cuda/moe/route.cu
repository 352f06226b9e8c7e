#include "backend/cuda/common.cuh"
#include "backend/cuda/moe/route.h"

namespace manta::backend::cuda {
namespace {

constexpr float kOut = -INFINITY;
constexpr int kWarps = 4;

// Index of the largest value, the first of equals; 0 when nothing compares (NaN, all out). One warp.
__device__ int best_of(const float* values, int n) {
  float best = kOut;
  int at = n;
  for (int i = threadIdx.x % 32; i < n; i += 32) {
    if (values[i] > best) {
      best = values[i];
      at = i;
    }
  }
  for (int d = 16; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(~0u, best, d);
    const int other_at = __shfl_xor_sync(~0u, at, d);
    if (other > best || (other == best && other_at < at)) {
      best = other;
      at = other_at;
    }
  }
  return at == n ? 0 : at;
}

// One warp a token; shared memory: scores, choice [E], groups [n_group] of each warp.
__global__ void choose_kernel(const __grid_constant__ ChooseExperts a) {
  extern __shared__ float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, e_count = a.num_experts;
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp;
  if (row >= a.num_rows) return;
  float* scores = shared + warp * (2 * e_count + a.n_group);
  float *choice = scores + e_count, *groups = choice + e_count;
  const int32_t position = a.positions[row];
  if (position < 0) {
    for (int k = lane; k < a.top_k; k += 32) {
      a.ids[row * a.top_k + k] = -1;
      a.weights[row * a.top_k + k] = 0.0f;
    }
    return;
  }
  for (int e = lane; e < e_count; e += 32) {
    float sum = 0.0f;
    for (int i = 0; i < a.num_partials; ++i) sum += a.logits[i * a.partial_stride + row * e_count + e];
    scores[e] = sum;
  }
  __syncwarp();
  const float* logits = scores;
  if (a.sigmoid) {
    for (int e = lane; e < e_count; e += 32) scores[e] = 1.0f / (1.0f + expf(-logits[e]));
  } else {
    float max = kOut, sum = 0.0f;
    for (int e = lane; e < e_count; e += 32) max = fmaxf(max, logits[e]);
    max = warp_max(max);
    for (int e = lane; e < e_count; e += 32) sum += scores[e] = expf(logits[e] - max);
    sum = warp_sum(sum);
    for (int e = lane; e < e_count; e += 32) scores[e] = scores[e] / sum;
  }
  __syncwarp();
  for (int e = lane; e < e_count; e += 32) choice[e] = a.bias != nullptr ? scores[e] + a.bias[e] : scores[e];
  __syncwarp();
  if (a.topk_group < a.n_group) {
    const int size = e_count / a.n_group;
    for (int g = lane; g < a.n_group; g += 32) {
      float first = kOut, second = kOut;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        second = fmaxf(second, fminf(first, choice[e]));
        first = fmaxf(first, choice[e]);
      }
      groups[g] = a.top2_sum && size > 1 ? first + second : first;
    }
    __syncwarp();
    for (int i = 0; i < a.topk_group; ++i) {
      const int g = best_of(groups, a.n_group);
      if (lane == 0) groups[g] = NAN;  // chosen: passed over from now on
      __syncwarp();
    }
    for (int e = lane; e < e_count; e += 32) {
      const float g = groups[e / size];
      if (g == g) choice[e] = kOut;
    }
    __syncwarp();
  }
  float sum = 0.0f;
  for (int k = 0; k < a.top_k; ++k) {
    const int e = best_of(choice, e_count);
    sum += scores[e];
    __syncwarp();
    if (lane == 0) {
      choice[e] = kOut;
      const int replica = position % a.replica_count[e];
      const int physical = a.logical_to_physical[int64_t{e} * a.max_replicas + replica];
      a.ids[row * a.top_k + k] = physical;
      a.weights[row * a.top_k + k] = scores[e];
      if (a.load != nullptr) atomicAdd(&a.load[physical], 1);
    }
    __syncwarp();
  }
  const float divisor = a.norm_topk_prob ? sum + 1e-20f : 1.0f;
  __syncwarp();
  for (int k = lane; k < a.top_k; k += 32) {
    float& w = a.weights[row * a.top_k + k];
    w = w / divisor * a.scaling;
  }
}

constexpr int kThreads = 256;

// One block an expert, which walks all pairs in order. First the counts, then (kAssign) the rows.
template <bool kAssign>
__global__ void __launch_bounds__(kThreads) assign_kernel(const __grid_constant__ Dispatch a) {
  __shared__ int warp_counts[kThreads / 32];
  const int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int pairs = a.num_tokens * a.top_k;
  int done = 0;
  int base = 0;
  if constexpr (kAssign) {
    if (a.masked) {
      base = static_cast<int>(expert * a.plane);
    } else {
      int below = 0;
      for (int e = threadIdx.x; e < expert; e += kThreads) below += a.counts[e];
      for (int d = 16; d > 0; d /= 2) below += __shfl_xor_sync(~0u, below, d);
      if (lane == 0) warp_counts[warp] = below;
      __syncthreads();
      for (int w = 0; w < kThreads / 32; ++w) base += warp_counts[w];
      __syncthreads();
      if (threadIdx.x == 0) a.offsets[expert] = base;
      if (threadIdx.x == 0 && expert == a.num_experts - 1) a.offsets[expert + 1] = base + a.counts[expert];
    }
  }
  for (int first = 0; first < pairs; first += kThreads) {
    const int i = first + threadIdx.x;
    const bool mine = i < pairs && a.ids[i] == expert;
    const unsigned ballot = __ballot_sync(~0u, mine);
    if (lane == 0) warp_counts[warp] = __popc(ballot);
    __syncthreads();
    int before = done, all = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      all += warp_counts[w];
    }
    if constexpr (kAssign) {
      if (mine) a.row_of[i] = base + before + __popc(ballot & ((1u << lane) - 1));
      if (expert == 0 && i < pairs && a.ids[i] < 0) a.row_of[i] = -1;
    }
    done += all;
    __syncthreads();
  }
  if (!kAssign && threadIdx.x == 0) a.counts[expert] = done;
}

__global__ void __launch_bounds__(kThreads)
    dispatch_kernel(const int32_t* row_of, int top_k, const bf16* from, int d, bf16* to) {
  const int64_t pair = blockIdx.x, row = row_of[pair];
  if (row < 0) return;
  const auto* source = reinterpret_cast<const uint4*>(from + pair / top_k * d);
  auto* target = reinterpret_cast<uint4*>(to + row * d);
  for (int c = threadIdx.x; c < d / 8; c += kThreads) target[c] = source[c];
}

__global__ void __launch_bounds__(kThreads)
    combine_kernel(const int32_t* row_of, int top_k, const bf16* outputs, const float* weights, int d, float* out) {
  const int64_t token = blockIdx.x;
  for (int c = 2 * threadIdx.x; c < d; c += 2 * kThreads) {
    float2 sum = {0.0f, 0.0f};
    for (int k = 0; k < top_k; ++k) {
      const int64_t row = row_of[token * top_k + k];
      if (row < 0) continue;
      const float w = weights[token * top_k + k];
      const float2 v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(outputs + row * d + c));
      sum.x = __fadd_rn(sum.x, __fmul_rn(w, v.x));
      sum.y = __fadd_rn(sum.y, __fmul_rn(w, v.y));
    }
    *reinterpret_cast<float2*>(out + token * d + c) = sum;
  }
}

}  // namespace

void choose_experts(const ChooseExperts& a, cudaStream_t stream) {
  if (a.num_rows == 0) return;
  const size_t bytes = kWarps * (2 * a.num_experts + a.n_group) * sizeof(float);
  choose_kernel<<<(a.num_rows + kWarps - 1) / kWarps, kWarps * 32, bytes, stream>>>(a);
}

void assign_rows(const Dispatch& a, cudaStream_t stream) {
  assign_kernel<false><<<a.num_experts, kThreads, 0, stream>>>(a);
  assign_kernel<true><<<a.num_experts, kThreads, 0, stream>>>(a);
}

void dispatch_rows(const Dispatch& a, const bf16* from, int d, bf16* to, cudaStream_t stream) {
  const int pairs = a.num_tokens * a.top_k;
  if (pairs > 0) dispatch_kernel<<<pairs, kThreads, 0, stream>>>(a.row_of, a.top_k, from, d, to);
}

void combine_rows(const Dispatch& a, const bf16* outputs, const float* weights, int d, float* out,
                  cudaStream_t stream) {
  if (a.num_tokens > 0) {
    combine_kernel<<<a.num_tokens, kThreads, 0, stream>>>(a.row_of, a.top_k, outputs, weights, d, out);
  }
}

}  // namespace manta::backend::cuda
