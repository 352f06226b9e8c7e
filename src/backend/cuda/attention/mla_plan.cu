// How the cache positions of all rows are cut into items of about equal work, once a step.
//
// 32 candidates, a warp each: the longest row cut in 1, 2, ... 32 pieces, shorter rows in pieces of the same length.
// The one whose rounds on the device take least wins; the first of equals, so that equal steps have equal plans.
#include <climits>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kItemCost = 3;   // of starting and ending an item, in tiles
constexpr int kSplitCost = 2;  // of bringing pieces together

__device__ bool is_planned(const MlaPlan& p, int row) {
  return p.is_expanded == nullptr || p.row_req[row] < 0 || p.is_expanded[p.row_req[row]] == 0;
}
__device__ int tiles_of(const MlaPlan& p, int row) {
  return (max(p.positions[row], -1) + kMlaTile) / kMlaTile;
}
__device__ int pieces_of(int tiles, int length) {
  return max(1, (tiles + length - 1) / length);
}

// Sum of `mine` over the threads before this one; `total` for all.
__device__ int scan(int mine, int* warp_sums, int& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int upto = mine;
  for (int d = 1; d < 32; d *= 2) {
    const int below = __shfl_up_sync(~0u, upto, d);
    if (lane >= d) upto += below;
  }
  if (lane == 31) warp_sums[warp] = upto;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    before += w < warp ? warp_sums[w] : 0;
    total += warp_sums[w];
  }
  __syncthreads();
  return before + upto - mine;
}

__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ MlaPlan p) {
  __shared__ int warp_sums[kThreads / 32], costs[kThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int longest = 1;
  for (int row = threadIdx.x; row < p.num_rows; row += kThreads) {
    if (is_planned(p, row)) longest = max(longest, tiles_of(p, row));
  }
  longest = __reduce_max_sync(~0u, longest);
  if (lane == 0) warp_sums[warp] = longest;
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w) longest = max(longest, warp_sums[w]);
  __syncthreads();

  const int length_here = (longest + warp) / (warp + 1);
  int items = 0;
  for (int row = lane; row < p.num_rows; row += 32) {
    if (is_planned(p, row)) items += pieces_of(tiles_of(p, row), length_here);
  }
  items = __reduce_add_sync(~0u, items);
  if (lane == 0) {
    const int rounds = (items + p.num_slots - 1) / p.num_slots;
    const bool fits = items <= p.num_planned + p.max_extra_items;
    costs[warp] = fits ? rounds * (length_here + kItemCost) + (warp > 0 ? kSplitCost : 0) : INT_MAX;
  }
  __syncthreads();
  int best = 0;
  for (int w = 1; w < kThreads / 32; ++w) best = costs[w] < costs[best] ? w : best;
  const int length = (longest + best) / (best + 1);

  int done = 0, partials = 0;
  for (int first = 0; first < p.num_rows; first += kThreads) {
    const int row = first + threadIdx.x;
    const bool there = row < p.num_rows && is_planned(p, row);
    const int tiles = there ? tiles_of(p, row) : 0, pieces = there ? pieces_of(tiles, length) : 0;
    int all_pieces, all_partials;
    const int item = done + scan(pieces, warp_sums, all_pieces);
    const int partial = partials + scan(pieces > 1 ? pieces : 0, warp_sums, all_partials);
    if (row < p.num_rows) p.row_pieces[row] = make_int2(partial, pieces);
    for (int i = 0; i < pieces; ++i) {
      const int begin = tiles * i / pieces, end = tiles * (i + 1) / pieces;
      p.items[item + i] = make_int4(row, begin, end, pieces > 1 ? partial + i : -1);
    }
    done += all_pieces;
    partials += all_partials;
  }
  for (int i = done + threadIdx.x; i < p.num_planned + p.max_extra_items; i += kThreads) {
    p.items[i] = make_int4(-1, 0, 0, -1);
  }
}

}  // namespace

void plan_mla(const MlaPlan& p, cudaStream_t stream) {
  if (p.num_planned > 0) plan_kernel<<<1, kThreads, 0, stream>>>(p);
}

}  // namespace manta::backend::cuda
