// Latents of cached positions to keys and values of every head.
//
// The products: a unit is one head's keys or its values, [R, 512] x [512, 128]. Units' row tiles stand in one line that
// is cut evenly among the blocks. A block keeps its unit's 128 KB of weights in shared memory and lets latents stream
// by; two warpgroups take row tiles in turns, so that one writes its results while the other's products run.
#include "backend/cuda/attention/prefill.h"
#include "backend/cuda/attention/rows.cuh"
#include "backend/cuda/common.cuh"
#include "backend/cuda/hopper.cuh"
#include "backend/cuda/tensor_map.h"

namespace manta::backend::cuda {
namespace {

// ---- gather ------------------------------------------------------------------------------------------------------

constexpr int kWidth = 576, kRowChunks = kWidth / 8, kGatherRows = 8;

__global__ void __launch_bounds__(256) gather_kernel(const __grid_constant__ PrefillPassLaunch p) {
  const int first = blockIdx.x * kGatherRows;
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.next_item = 0;
  KvSegment segment;  // the last one that begins at or before these rows, all of one tile
  for (int i = 0; i < p.num_segments && p.segments[i].row <= first; ++i) segment = p.segments[i];
  const int32_t* table = p.block_tables + segment.slot * p.max_blocks;
  for (int i = threadIdx.x; i < kGatherRows * kRowChunks; i += 256) {
    const int row = first + i / kRowChunks, in_segment = row - segment.row;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (in_segment < segment.num_rows) {
      const int position = segment.position + in_segment;
      const int64_t at = int64_t{table[position / p.block_size]} * p.block_size + position % p.block_size;
      v = reinterpret_cast<const uint4*>(p.cache + at * kWidth)[i % kRowChunks];
    }
    reinterpret_cast<uint4*>(p.latents + int64_t{row} * kWidth)[i % kRowChunks] = v;
  }
}

// ---- products ----------------------------------------------------------------------------------------------------

constexpr int kLatent = 512, kColumns = 128, kTileRows = 64, kThreads = 384;
constexpr int kWeightPieces = 8, kWeightPieceBytes = 64 * kColumns * 2;  // 64 of k
constexpr int kStageDepth = 128, kStageBytes = kTileRows * kStageDepth * 2;
constexpr int kStages = kLatent / kStageDepth;  // a tile's: stage i holds part i of k

struct ExpandShared {
  uint8_t w[kWeightPieces][kWeightPieceBytes];
  uint8_t a[kStages][kStageBytes];  // two pieces of 64 columns
  uint8_t out[2][kTileRows * kColumns * 2];
  uint64_t w_full[kWeightPieces], w_empty;
  uint64_t full[2][kStages], empty[kStages];  // full: for each warpgroup, which has every other tile
};
constexpr int kSharedBytes = sizeof(ExpandShared) + 1024;
static_assert(kSharedBytes <= 232448);

struct ExpandLaunch {
  PrefillPassLaunch p;
  CUtensorMap latent_map, key_up_map, value_up_map;
};

// The row tiles [begin, end) of the line, in runs of one unit.
struct Share {
  int begin, end, tiles_per_unit;
  __device__ explicit Share(const PrefillPassLaunch& p) : tiles_per_unit(p.num_rows / kTileRows) {
    const int64_t all = int64_t{2} * p.heads * tiles_per_unit;
    begin = static_cast<int>(all * blockIdx.x / gridDim.x);
    end = static_cast<int>(all * (blockIdx.x + 1) / gridDim.x);
  }
  __device__ bool starts_unit(int tile) const { return tile == begin || tile % tiles_per_unit == 0; }
};
// Units alternate: keys and values of head 0, of head 1, ...
__device__ bool is_keys(int unit) {
  return unit % 2 == 0;
}

__device__ void load_weights(const ExpandLaunch& launch, ExpandShared& s, int unit) {
  const int head = unit / 2;
  for (int i = 0; i < kWeightPieces; ++i) {
    barrier_arrive_expect(&s.w_full[i], kWeightPieceBytes);
    if (is_keys(unit)) {  // rows are k
      for (int c = 0; c < 2; ++c) {
        tensor_load(s.w[i] + c * 64 * 128, &launch.key_up_map, &s.w_full[i], c * 64, head * kLatent + i * 64);
      }
    } else {
      tensor_load(s.w[i], &launch.value_up_map, &s.w_full[i], i * 64, head * kColumns);
    }
  }
}

// One thread.
__device__ void fetch(const ExpandLaunch& launch, ExpandShared& s) {
  const Share share(launch.p);
  int units = 0;
  for (int tile = share.begin; tile < share.end; ++tile) {
    const int index = tile - share.begin;
    if (share.starts_unit(tile)) {
      barrier_wait(&s.w_empty, (units & 1) ^ 1);
      load_weights(launch, s, tile / share.tiles_per_unit);
      ++units;
    }
    for (int i = 0; i < kStages; ++i) {
      uint64_t* full = &s.full[index % 2][i];
      barrier_wait(&s.empty[i], (index & 1) ^ 1);
      barrier_arrive_expect(full, kStageBytes);
      for (int c = 0; c < 2; ++c) {
        tensor_load(s.a[i] + c * kTileRows * 128, &launch.latent_map, full, i * kStageDepth + c * 64,
                    tile % share.tiles_per_unit * kTileRows);
      }
    }
  }
}

template <bool kKeys>
__device__ __forceinline__ void multiply_stage(ExpandShared& s, int i, float (&sum)[64]) {
  wgmma_begin();
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const uint64_t a = k_major(s.a[i] + c * kTileRows * 128);
    const uint8_t* w = s.w[i * 2 + c];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const bool add = i + c + k > 0;
      if constexpr (kKeys) {
        wgmma_bf16_rows(sum, advanced(a, k * 32), advanced(rows_are_k(w, 64 * 128), k * 16 * 128), add);
      } else {
        wgmma_bf16(sum, advanced(a, k * 32), advanced(k_major(w), k * 32), add);
      }
    }
  }
  wgmma_commit();
}

// 64 x 128 results of the warpgroup, which stand in one piece.
__device__ __forceinline__ void store_tile(ExpandShared& s, int w, const float (&sum)[64], bf16* to) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  uint8_t* out = s.out[w] + warp * 16 * 256;
  put_rows(out, sum);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int r = i * 2 + lane / 16;
    *reinterpret_cast<uint4*>(to + (warp * 16 + r) * kColumns + lane % 16 * 8) = load_chunk(out, r, lane % 16);
  }
  __syncwarp();
}

__device__ __forceinline__ void wait_for_weights(ExpandShared& s, int i, int parity) {
  barrier_wait(&s.w_full[2 * i], parity);
  barrier_wait(&s.w_full[2 * i + 1], parity);
}

template <bool kKeys>
__device__ __forceinline__ void multiply_tile(ExpandShared& s, float (&sum)[64], uint64_t (&full)[kStages], int parity,
                                              bool new_weights, int weight_parity) {
  wgmma_hold(sum);
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (new_weights) wait_for_weights(s, i, weight_parity);
    barrier_wait(&full[i], parity);
    multiply_stage<kKeys>(s, i, sum);
    if (i == 0) continue;
    wgmma_wait<1>();
    release(&s.empty[i - 1]);
  }
  wgmma_wait<0>();
  wgmma_hold(sum);
  release(&s.empty[kStages - 1]);
}

__device__ void multiply(const ExpandLaunch& launch, ExpandShared& s, int w) {
  const PrefillPassLaunch& p = launch.p;
  const Share share(p);
  float sum[64];
  int units = 0;
  bool is_new = false;  // this warpgroup has not waited for the unit's weights
  for (int tile = share.begin; tile < share.end; ++tile) {
    if (share.starts_unit(tile)) {
      if (units > 0) {  // done with the weights before; where it had no tile of theirs, once they are there
        for (int i = 0; is_new && i < kStages; ++i) wait_for_weights(s, i, (units - 1) & 1);
        release(&s.w_empty);
      }
      ++units;
      is_new = true;
    }
    const int index = tile - share.begin;
    if (index % 2 != w) continue;
    const int unit = tile / share.tiles_per_unit, head = unit / 2, row = tile % share.tiles_per_unit * kTileRows;
    const int parity = index / 2 & 1, weight_parity = (units - 1) & 1;
    bf16* to = (is_keys(unit) ? p.keys : p.values) + (int64_t{head} * p.num_rows + row) * kColumns;
    if (is_keys(unit)) {
      multiply_tile<true>(s, sum, s.full[w], parity, is_new, weight_parity);
    } else {
      multiply_tile<false>(s, sum, s.full[w], parity, is_new, weight_parity);
    }
    is_new = false;
    store_tile(s, w, sum, to);
  }
}

__global__ void __launch_bounds__(kThreads, 1) expand_kernel(const __grid_constant__ ExpandLaunch launch) {
  extern __shared__ uint8_t raw[];
  auto& s = *reinterpret_cast<ExpandShared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (auto& barrier : s.w_full) barrier_init(&barrier, 1);
    barrier_init(&s.w_empty, 2);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[0][i], 1);
      barrier_init(&s.full[1][i], 1);
      barrier_init(&s.empty[i], 1);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 256) {
    registers_give<40>();
    if (threadIdx.x == 256) fetch(launch, s);
  } else {
    registers_take<232>();
    multiply(launch, s, static_cast<int>(threadIdx.x) / 128);
  }
}

int num_multiprocessors = 0;

}  // namespace

int prepare_expand() {
  cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  return cudaFuncSetAttribute(expand_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
}

void gather_latents(const PrefillPassLaunch& p, cudaStream_t stream) {
  gather_kernel<<<p.num_rows / kGatherRows, 256, 0, stream>>>(p);
}

void expand_latents(const PrefillPassLaunch& p, cudaStream_t stream) {
  ExpandLaunch launch;
  launch.p = p;
  launch.latent_map = encode_map(
      {.data = p.latents, .columns = kWidth, .rows = p.num_rows, .row_stride = kWidth, .box_rows = kTileRows});
  launch.key_up_map = encode_map({.data = p.key_up,
                                  .columns = kColumns,
                                  .rows = int64_t{p.heads} * kLatent,
                                  .row_stride = kColumns,
                                  .box_rows = 64});
  launch.value_up_map = encode_map({.data = p.value_up,
                                    .columns = kLatent,
                                    .rows = int64_t{p.heads} * kColumns,
                                    .row_stride = kLatent,
                                    .box_rows = kColumns});
  const int tiles = 2 * p.heads * (p.num_rows / kTileRows);
  expand_kernel<<<min(num_multiprocessors, tiles), kThreads, kSharedBytes, stream>>>(launch);
}

}  // namespace manta::backend::cuda
