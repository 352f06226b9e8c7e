// MLA on wgmma. A block takes 64 heads of one row over a run of cache tiles (64 positions, 72 KB), two of which it
// holds.
//
// Warpgroup 0 makes the scores of tiles 0, 2, ..., warpgroup 1 of tiles 1, 3, ...; each adds every tile's values to its
// half of the columns, the left or the right 256. Of its own tiles a warpgroup has the weights in registers, the
// other's it reads from shared memory, where they replace the tile's rotary columns. The two run half a turn apart: one
// makes weights while the other's products run.
//
// A tile stands in 9 pieces of 64 columns. Of tile w of a pair, warpgroup w is done first with its own half of the
// columns (`early`), the other warpgroup with the other half and the weights (`late`): two barriers each way for each
// tile.
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/rows.cuh"
#include "backend/cuda/common.cuh"
#include "backend/cuda/hopper.cuh"
#include "backend/cuda/tensor_map.h"

namespace manta::backend::cuda {
namespace {

constexpr int kHeads = 64, kTile = kMlaTile, kThreads = 384, kConsumers = 256;
constexpr int kLatent = 512, kRope = 64, kPieces = 9, kPieceBytes = kTile * 128;
constexpr float kLowest = -INFINITY;

struct MlaShared {
  uint8_t q[kPieces][kPieceBytes];
  uint8_t kv[2][kPieces][kPieceBytes];
  float max[2][kHeads];
  float sum[2][kHeads];
  uint64_t q_full;
  uint64_t full[2][2], empty[2][2];  // [tile of a pair][early, late]
};
constexpr int kSharedBytes = sizeof(MlaShared) + 1024;
static_assert(kSharedBytes <= 232448);

struct MlaLaunch {
  MlaAttention a;
  CUtensorMap q_map;
  CUtensorMap half_map, rope_map;  // of the cache: 4 pieces, the last one
  int box_rows = 0;                // of the cache, that one copy brings
};

enum Half { kEarly, kLate };
struct Item {
  int row, begin, end, partial;
};

// The whole warp: lane l finds box l of the next pair of tiles in the block table while this pair's copies wait for
// room.
__device__ void fetch(const MlaLaunch& launch, MlaShared& s, const Item& item) {
  const MlaAttention& a = launch.a;
  const int lane = threadIdx.x % 32, boxes = kTile / launch.box_rows;
  const int32_t* table = a.block_tables + a.req_slot[a.row_req[item.row]] * a.max_blocks;
  const auto cache_row = [&](int tile) {
    const int position = (tile + lane / boxes) * kTile + lane % boxes * launch.box_rows;
    return lane < 2 * boxes && position < item.end * kTile
               ? table[position / a.block_size] * a.block_size + position % a.block_size
               : 0;
  };
  int next_row = cache_row(item.begin);
  if (lane == 0) {
    barrier_arrive_expect(&s.q_full, kPieces * kPieceBytes);
    for (int c = 0; c < kPieces; ++c) {
      tensor_load(s.q[c], &launch.q_map, &s.q_full, c * 64, static_cast<int>(blockIdx.x) * kHeads, item.row);
    }
  }
  for (int tile = item.begin, pair = 0; tile < item.end; tile += 2, ++pair) {
    const int row = next_row;
    next_row = cache_row(tile + 2);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int w = step / 2;
      const Half half = step % 2 == 0 ? kEarly : kLate;
      if (tile + w >= item.end) continue;
      uint64_t* full = &s.full[w][half];
      barrier_wait(&s.empty[w][half], (pair & 1) ^ 1);
      if (lane == 0) barrier_arrive_expect(full, (half == kEarly ? 4 : 5) * kPieceBytes);
      for (int box = 0; box < boxes; ++box) {
        const int from = __shfl_sync(~0u, row, w * boxes + box);
        if (lane != 0) continue;
        const int first = (half == kEarly ? w : 1 - w) * 4;
        if (boxes == 1) {
          tensor_load(s.kv[w][first], &launch.half_map, full, 0, from, first);
        } else {
          for (int c = first; c < first + 4; ++c) {
            tensor_load(s.kv[w][c] + box * launch.box_rows * 128, &launch.rope_map, full, 0, from, c);
          }
        }
        if (half == kLate) {
          tensor_load(s.kv[w][8] + box * launch.box_rows * 128, &launch.rope_map, full, 0, from, 8);
        }
      }
    }
  }
}

// 16 rows of weights of this warp as products take them, from registers and for the other warpgroup.
__device__ __forceinline__ void put_weights(const uint32_t (&p)[16], uint8_t* to) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int r = row + i % 2 * 8;
    *reinterpret_cast<uint32_t*>(to + r * 128 + (((i / 2) ^ (r & 7)) * 16) + lane % 4 * 4) = p[i];
  }
}

// Positions that are not seen may hold anything; a weight of zero does not make NaN go away.
__device__ void clear_rows(uint8_t (&tile)[kPieces][kPieceBytes], int first) {
  const int chunks = (kTile - first) * 8;
  for (int i = threadIdx.x % 128; i < 8 * chunks; i += 128) {
    *reinterpret_cast<uint4*>(&tile[i / chunks][first * 128 + i % chunks * 16]) = make_uint4(0, 0, 0, 0);
  }
}

// What a thread of a warpgroup carries along: of two heads, 64 columns' sums, the maximum that weights are relative to,
// and the sum of the weights of its own tiles.
struct Sums {
  float out[128];
  float max[2], total[2];
};

// Named barriers: the weights of a warpgroup's tile are there; what it is not to see is cleared.
constexpr int kWeightsOf0 = 2, kWeightsOf1 = 3, kClearedBy0 = 4, kClearedBy1 = 5;

// The maximum moves only when it grows by more than 2^8, so that sums are rarely rescaled; weights stay far below what
// float32 and bf16 hold.
__device__ __forceinline__ void move_max(Sums& sums, const float (&now)[2], float scale) {
  float shrink[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    shrink[e] = now[e] == sums.max[e] ? 1.0f : exp2f((sums.max[e] - now[e]) * scale);
    sums.max[e] = now[e];
    sums.total[e] *= shrink[e];
  }
  shrink_rows(sums.out, shrink);
}

template <int w>
__device__ __forceinline__ void start_scores(MlaShared& s, float (&score)[32], int parity) {
  wgmma_hold(score);
#pragma unroll
  for (int step = 0; step < kPieces; ++step) {
    if (step == 0 || step == 4) {
      if (step == 4) wgmma_commit();
      barrier_wait(&s.full[w][step == 0 ? kEarly : kLate], parity);
      wgmma_begin();
    }
    const int c = step < 4 ? w * 4 + step : step < 8 ? (1 - w) * 4 + step - 4 : 8;
    const uint64_t q = k_major(s.q[c]), k = k_major(s.kv[w][c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma_bf16(score, advanced(q, i * 32), advanced(k, i * 32), step + i > 0);
  }
  wgmma_commit();
}

// The tile's own maximum, where it makes the one carried along move; else that.
__device__ __forceinline__ void find_max(const Sums& sums, const float (&score)[32], float scale, float (&now)[2]) {
  float best[2] = {kLowest, kLowest};
#pragma unroll
  for (int i = 0; i < 32; ++i) best[i / 2 % 2] = fmaxf(best[i / 2 % 2], score[i]);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    best[e] = row_max(best[e]);
    now[e] = (best[e] - sums.max[e]) * scale > 8.0f ? best[e] : sums.max[e];
  }
}

// Scores -> weights, here and for the other warpgroup.
template <int w>
__device__ __forceinline__ void make_weights(MlaShared& s, Sums& sums, float (&score)[32], uint32_t (&weights)[16],
                                             int seen, float scale) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
  if (seen < kTile) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= seen) score[i] = kLowest;
    }
    clear_rows(s.kv[w], seen);
    fence_to_async();
    named_barrier(w == 0 ? kClearedBy0 : kClearedBy1, kConsumers / 2);
  }
  float now[2];
  find_max(sums, score, scale, now);
  if (lane % 4 == 0) {
    s.max[w][row] = now[0];
    s.max[w][row + 8] = now[1];
  }
  float total[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int e = i % 2;
    const float offset = now[e] * scale;
    const __nv_bfloat162 p =
        __floats2bfloat162_rn(exp2f(fmaf(score[2 * i], scale, -offset)), exp2f(fmaf(score[2 * i + 1], scale, -offset)));
    total[e] += __low2float(p) + __high2float(p);
    weights[i] = reinterpret_cast<const uint32_t&>(p);
  }
  put_weights(weights, s.kv[w][8]);
  fence_to_async();
  named_barrier_arrive(w == 0 ? kWeightsOf0 : kWeightsOf1, kConsumers);
  // In registers the new maximum counts from here on.
  if (w == 1) {  // products of the other tile may still add to the sums
    wgmma_wait<0>();
    wgmma_hold(sums.out);
    release(&s.empty[0][kLate]);
  }
  move_max(sums, now, scale);
#pragma unroll
  for (int e = 0; e < 2; ++e) sums.total[e] += total[e];
}

// sums += weights x values of the own tile.
template <int w>
__device__ __forceinline__ void add_own(MlaShared& s, Sums& sums, uint32_t (&weights)[16]) {
  wgmma_hold(sums.out);
  wgmma_hold(weights);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t p[4] = {weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3]};
    wgmma_bf16_rows(sums.out, p, rows_are_k(s.kv[w][w * 4] + k * 16 * 128, kPieceBytes), true);
  }
  wgmma_commit();
}

// Likewise of the other warpgroup's tile, once its weights are there.
template <int w>
__device__ __forceinline__ void add_other(MlaShared& s, Sums& sums, float scale) {
  constexpr int other = 1 - w;
  const int row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  named_barrier(w == 0 ? kWeightsOf1 : kWeightsOf0, kConsumers);
  const float now[2] = {s.max[other][row], s.max[other][row + 8]};
  move_max(sums, now, scale);
  wgmma_hold(sums.out);
  wgmma_begin();
  const uint64_t p = k_major(s.kv[other][8]);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    wgmma_bf16_rows(sums.out, advanced(p, k * 32), rows_are_k(s.kv[other][w * 4] + k * 16 * 128, kPieceBytes), true);
  }
  wgmma_commit();
}

// The tiles of an item, for warpgroup w.
template <int w>
__device__ __forceinline__ void attend_tiles(MlaShared& s, Sums& sums, const Item& item, int num_seen, float scale) {
  float score[32];
  uint32_t weights[16];
  int tile = item.begin, parity = 0;
  for (; tile + 1 < item.end; tile += 2, parity ^= 1) {
    const int seen = num_seen - (tile + w) * kTile;
    start_scores<w>(s, score, parity);
    if constexpr (w == 0) {
      wgmma_wait<0>();
      wgmma_hold(score);
      make_weights<w>(s, sums, score, weights, seen, scale);
      add_own<w>(s, sums, weights);
      wgmma_wait<0>();
      wgmma_hold(sums.out);
      release(&s.empty[0][kEarly]);
      add_other<w>(s, sums, scale);
      wgmma_wait<0>();
      wgmma_hold(sums.out);
      release(&s.empty[1][kLate]);
    } else {
      add_other<w>(s, sums, scale);
      wgmma_wait<1>();
      wgmma_hold(score);
      make_weights<w>(s, sums, score, weights, seen, scale);
      add_own<w>(s, sums, weights);
      wgmma_wait<0>();
      wgmma_hold(sums.out);
      release(&s.empty[1][kEarly]);
    }
  }
  if (tile >= item.end) return;
  if constexpr (w == 0) {
    start_scores<w>(s, score, parity);
    wgmma_wait<0>();
    wgmma_hold(score);
    make_weights<w>(s, sums, score, weights, num_seen - tile * kTile, scale);
    add_own<w>(s, sums, weights);
  } else {
    add_other<w>(s, sums, scale);
  }
  wgmma_wait<0>();
  wgmma_hold(sums.out);
}

// 16 rows x 256 columns of a warp to out: through shared memory, so that a row goes out as 512 bytes.
template <int w>
__device__ __forceinline__ void store_out(const MlaAttention& a, MlaShared& s, const Item& item, const Sums& sums,
                                          const float (&inverse)[2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint8_t* out = &s.kv[0][0][0] + warp * 16 * 512;
#pragma unroll
  for (int n = 0; n < 32; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = lane / 4 + 8 * e;
      *reinterpret_cast<__nv_bfloat162*>(out + r * 512 + ((n ^ (r & 7)) * 16) + lane % 4 * 4) =
          __floats2bfloat162_rn(sums.out[4 * n + 2 * e] * inverse[e], sums.out[4 * n + 2 * e + 1] * inverse[e]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 16; ++r) {
    const int head = static_cast<int>(blockIdx.x) * kHeads + warp % 4 * 16 + r;
    if (head >= a.heads) break;
    const uint4 v = *reinterpret_cast<const uint4*>(out + r * 512 + ((lane ^ (r & 7)) * 16));
    *reinterpret_cast<uint4*>(a.out + (int64_t{item.row} * a.heads + head) * kLatent + w * 256 + lane * 8) = v;
  }
}

template <int w>
__device__ __forceinline__ void store_partial(const MlaAttention& a, const Item& item, const Sums& sums,
                                              const float (&all)[2], float scale) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t head = static_cast<int>(blockIdx.x) * kHeads + threadIdx.x / 32 % 4 * 16 + lane / 4 + 8 * e;
    if (head >= a.heads) continue;
    const float inverse = all[e] > 0.0f ? 1.0f / all[e] : 0.0f;
    const int64_t to = int64_t{item.partial} * a.heads + head;
    float* out = a.partial_out + to * kLatent + w * 256 + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      *reinterpret_cast<float2*>(out + n * 8) =
          make_float2(sums.out[4 * n + 2 * e] * inverse, sums.out[4 * n + 2 * e + 1] * inverse);
    }
    if (w == 0 && lane % 4 == 0) {
      a.partial_lse[to] = all[e] > 0.0f ? sums.max[e] * scale + log2f(all[e]) : kLowest;
    }
  }
}

template <int w>
__device__ void attend(const MlaLaunch& launch, MlaShared& s, const Item& item) {
  const MlaAttention& a = launch.a;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;  // of 64 heads; also row + 8
  const int num_seen = a.positions[item.row] + 1;
  const float scale = a.softmax_scale * 1.4426950408889634f;
  Sums sums;
#pragma unroll
  for (int i = 0; i < 128; ++i) sums.out[i] = 0.0f;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    sums.max[e] = kLowest;
    sums.total[e] = 0.0f;
  }
  barrier_wait(&s.q_full, 0);
  attend_tiles<w>(s, sums, item, num_seen, scale);
  float all[2], inverse[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    sums.total[e] += __shfl_xor_sync(~0u, sums.total[e], 1);
    sums.total[e] += __shfl_xor_sync(~0u, sums.total[e], 2);
    if (lane % 4 == 0) s.sum[w][row + 8 * e] = sums.total[e];
  }
  named_barrier(1, kConsumers);  // also: nobody reads the tiles any more
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    all[e] = sums.total[e] + s.sum[1 - w][row + 8 * e];
    inverse[e] = all[e] > 0.0f ? 1.0f / all[e] : 0.0f;
  }
  if (item.partial < 0) {
    store_out<w>(a, s, item, sums, inverse);
  } else {
    store_partial<w>(a, item, sums, all, scale);
  }
}

__global__ void __launch_bounds__(kThreads, 1) mla_kernel(const __grid_constant__ MlaLaunch launch) {
  extern __shared__ uint8_t raw[];
  auto& s = *reinterpret_cast<MlaShared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int4 planned = launch.a.items[blockIdx.y];
  if (planned.x < 0) return;
  const Item item = {planned.x, planned.y, planned.z, planned.w};
  if (threadIdx.x == 0) {
    barrier_init(&s.q_full, 1);
    for (int i = 0; i < 4; ++i) {
      barrier_init(&s.full[i / 2][i % 2], 1);
      barrier_init(&s.empty[i / 2][i % 2], 1);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    registers_give<40>();
    if (threadIdx.x / 32 == kConsumers / 32) fetch(launch, s, item);
  } else {
    registers_take<232>();
    if (threadIdx.x < 128) {
      attend<0>(launch, s, item);
    } else {
      attend<1>(launch, s, item);
    }
  }
}

// out [T, H, C] of the rows that were cut: the pieces by their log-sum-exp (base 2). A warp a head.
__global__ void __launch_bounds__(256) combine_kernel(const __grid_constant__ MlaAttention a) {
  const int64_t row = blockIdx.x;
  const int2 pieces = a.row_pieces[row];
  if (pieces.y <= 1) return;  // rows of other kernels have none
  const int lane = threadIdx.x % 32;
  for (int head = blockIdx.y * 8 + threadIdx.x / 32; head < a.heads; head += gridDim.y * 8) {
    const auto at = [&](int i) { return int64_t{pieces.x + i} * a.heads + head; };
    const float lse = lane < pieces.y ? a.partial_lse[at(lane)] : kLowest;  // at most 32 pieces
    const float max = warp_max(lse);
    const float weight = max > kLowest ? exp2f(lse - max) : 0.0f;
    const float total = warp_sum(weight);
    float4 sum[4] = {};
    for (int i = 0; i < pieces.y; ++i) {
      const float factor = __shfl_sync(~0u, weight, i) / total;
      const auto* from = reinterpret_cast<const float4*>(a.partial_out + at(i) * kLatent);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 v = from[j * 32 + lane];
        sum[j] = make_float4(sum[j].x + factor * v.x, sum[j].y + factor * v.y, sum[j].z + factor * v.z,
                             sum[j].w + factor * v.w);
      }
    }
    bf16* out = a.out + (row * a.heads + head) * kLatent;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      __nv_bfloat162 two[2] = {__floats2bfloat162_rn(sum[j].x, sum[j].y), __floats2bfloat162_rn(sum[j].z, sum[j].w)};
      *reinterpret_cast<uint2*>(out + (j * 32 + lane) * 4) = *reinterpret_cast<uint2*>(two);
    }
  }
}

}  // namespace

int prepare_mla() {
  return cudaFuncSetAttribute(mla_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
}

bool mla_takes(int latent, int rope, int block_size) {
  return latent == kLatent && rope == kRope && block_size % 8 == 0 &&
         (kTile % block_size == 0 || block_size % kTile == 0);
}

int mla_blocks_per_item(int heads) {
  return (heads + kHeads - 1) / kHeads;
}

void mla_attention(const MlaAttention& a, cudaStream_t stream) {
  if (a.num_rows == 0 || (a.items != nullptr && a.num_planned == 0)) return;
  if (a.items == nullptr) return mla_plain(a, stream);
  constexpr int kWidth = kLatent + kRope;
  MlaLaunch launch;
  launch.a = a;
  launch.box_rows = min(kTile, a.block_size);
  launch.q_map = encode_map({.data = a.queries,
                             .columns = kWidth,
                             .rows = a.heads,
                             .row_stride = kWidth,
                             .planes = a.num_rows,
                             .plane_stride = int64_t{a.heads} * kWidth,
                             .box_rows = kHeads});
  MapShape cache = {.data = a.cache,  // pieces of 64 columns are the third axis: one copy brings several
                    .columns = 64,
                    .rows = a.cache_rows,
                    .row_stride = kWidth,
                    .planes = kPieces,
                    .plane_stride = 64,
                    .box_rows = launch.box_rows};
  launch.rope_map = encode_map(cache);
  cache.box_planes = 4;
  launch.half_map = encode_map(cache);
  const dim3 grid(mla_blocks_per_item(a.heads), a.num_planned + a.max_extra_items);
  mla_kernel<<<grid, kThreads, kSharedBytes, stream>>>(launch);
  if (a.max_extra_items > 0) combine_kernel<<<dim3(a.num_rows, (a.heads + 7) / 8), 256, 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
