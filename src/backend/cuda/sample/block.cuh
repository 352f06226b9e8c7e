// Reductions of the sampling kernels over one block of kThreads.
#pragma once

#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {

constexpr int kSampleThreads = 1024;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kMostCandidates = 2048;

struct SampleShared {
  // Tokens that may still be drawn, in any order; fewer than none: all of the vocabulary may.
  int num_candidates;
  int candidate[kMostCandidates];
  unsigned long long bins[256];
  unsigned long long total;
  double score[kSampleWarps];
  float value[kSampleWarps];
  int id[kSampleWarps];
  unsigned long long found_sum;
  uint32_t found_bin;
  int flag;
  float best_value;
  int best_id;
};

__device__ __forceinline__ bool is_better(float value, int id, float best, int best_id) {
  return value > best || (value == best && id < best_id);
}

// Highest value, lowest id among equals, for every thread; id INT_MAX when there is none.
__device__ inline int block_argmax(float& value, int id, SampleShared& s) {
  for (int d = 16; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(~0u, value, d);
    const int other_id = __shfl_xor_sync(~0u, id, d);
    if (is_better(other, other_id, value, id)) {
      value = other;
      id = other_id;
    }
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) {
    s.value[warp] = value;
    s.id[warp] = id;
  }
  __syncthreads();
  value = s.value[lane];
  id = s.id[lane];
  for (int d = 16; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(~0u, value, d);
    const int other_id = __shfl_xor_sync(~0u, id, d);
    if (is_better(other, other_id, value, id)) {
      value = other;
      id = other_id;
    }
  }
  __syncthreads();
  return id;
}

__device__ inline double block_sum_double(double x, SampleShared& s) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  if (threadIdx.x % 32 == 0) s.score[threadIdx.x / 32] = x;
  __syncthreads();
  double y = s.score[threadIdx.x % 32];
  for (int d = 16; d > 0; d /= 2) y += __shfl_xor_sync(~0u, y, d);
  __syncthreads();
  return y;
}

// Floats as integers of the same order.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The largest key for which the weights of all items with that key or a larger one reach `target`, and in `above` the
// weights of the larger ones; key 0 when they never do. for_each(f) calls f(key, weight) for the items of a thread.
template <typename ForEach>
__device__ uint32_t find_cut(unsigned long long target, unsigned long long& above, SampleShared& s,
                             ForEach&& for_each) {
  uint32_t prefix = 0, mask = 0;
  above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) s.bins[threadIdx.x] = 0;
    __syncthreads();
    for_each([&](uint32_t key, unsigned long long weight) {
      if ((key & mask) == prefix) atomicAdd(&s.bins[key >> shift & 255], weight);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long sum = above;
      int bin = 255;
      while (bin > 0 && sum + s.bins[bin] < target) sum += s.bins[bin--];
      s.found_bin = bin;
      s.found_sum = sum;
    }
    __syncthreads();
    prefix |= s.found_bin << shift;
    mask |= 255u << shift;
    above = s.found_sum;
    __syncthreads();
  }
  return prefix;
}

}  // namespace manta::backend::cuda
