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

// The same for a number of experts that lanes hold in registers, kEach a lane: 256 experts in groups of whole lanes.
// One warp, a block of its own, a token.
constexpr int kEach = 8;

__device__ __forceinline__ void keep_best(float& best, int& at, float other, int other_at) {
  if (other > best || (other == best && other_at < at)) {
    best = other;
    at = other_at;
  }
}
__device__ __forceinline__ int warp_best(float best, int at, int none) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(~0u, best, d);
    keep_best(best, at, other, __shfl_xor_sync(~0u, at, d));
  }
  return at == none ? 0 : at;
}

// Whether a lane's group is one of the chosen. Lanes of a group hold the same value.
__device__ bool in_chosen_group(const ChooseExperts& a, const float (&choice)[kEach]) {
  const int lane = threadIdx.x, lanes = 32 / a.n_group, group = lane / lanes;
  float first = kOut, second = kOut;
  const auto add = [&](float x) {
    second = fmaxf(second, fminf(first, x));
    first = fmaxf(first, x);
  };
#pragma unroll
  for (int i = 0; i < kEach; ++i) add(choice[i]);
  for (int d = 1; d < lanes; d *= 2) {
    const float other_first = __shfl_xor_sync(~0u, first, d), other_second = __shfl_xor_sync(~0u, second, d);
    add(other_first);
    add(other_second);
  }
  float value = a.top2_sum ? first + second : first;
  bool chosen = false;
  for (int i = 0; i < a.topk_group; ++i) {
    const bool compares = value > kOut;
    const int best = warp_best(compares ? value : kOut, compares ? group : a.n_group, a.n_group);
    if (group == best) {
      chosen = true;
      value = NAN;
    }
  }
  return chosen;
}

__global__ void __launch_bounds__(32) choose_256_kernel(const __grid_constant__ ChooseExperts a) {
  constexpr int kExperts = 32 * kEach;
  const int lane = threadIdx.x;
  const int64_t row = blockIdx.x;
  const int32_t position = a.positions[row];
  if (position < 0) {
    if (lane < a.top_k) {
      a.ids[row * a.top_k + lane] = -1;
      a.weights[row * a.top_k + lane] = 0.0f;
    }
    return;
  }
  float scores[kEach] = {}, choice[kEach];
#pragma unroll 8
  for (int p = 0; p < a.num_partials; ++p) {
    const auto* from = reinterpret_cast<const float4*>(a.logits + p * a.partial_stride + row * kExperts + lane * kEach);
    const float4 low = from[0], high = from[1];
    const float v[kEach] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < kEach; ++i) scores[i] += v[i];
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    scores[i] = 1.0f / (1.0f + expf(-scores[i]));
    choice[i] = a.bias != nullptr ? scores[i] + a.bias[lane * kEach + i] : scores[i];
  }
  if (a.topk_group < a.n_group && !in_chosen_group(a, choice)) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) choice[i] = kOut;
  }
  __syncwarp();
  float sum = 0.0f, mine = 0.0f;  // lane k keeps choice k
  int expert = 0;
  for (int k = 0; k < a.top_k; ++k) {
    float best = kOut;
    int at = kExperts;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (choice[i] > best) {
        best = choice[i];
        at = lane * kEach + i;
      }
    }
    const int e = warp_best(best, at, kExperts);
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (e == lane * kEach + i) {
        score = scores[i];
        choice[i] = kOut;
      }
    }
    score = __shfl_sync(~0u, score, e / kEach);
    sum += score;
    if (lane == k) {
      mine = score;
      expert = e;
    }
  }
  if (lane >= a.top_k) return;
  const int replica = position % a.replica_count[expert];
  const int physical = a.logical_to_physical[int64_t{expert} * a.max_replicas + replica];
  a.ids[row * a.top_k + lane] = physical;
  a.weights[row * a.top_k + lane] = mine / (a.norm_topk_prob ? sum + 1e-20f : 1.0f) * a.scaling;
  if (a.load != nullptr) atomicAdd(&a.load[physical], 1);
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
  const bool whole_lanes = a.n_group <= 32 && 32 % a.n_group == 0;
  if (a.num_experts == 32 * kEach && whole_lanes && a.sigmoid && a.top_k <= 32) {
    choose_256_kernel<<<a.num_rows, 32, 0, stream>>>(a);
    return;
  }
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
