// What a block of tile_gemm.cuh is launched with and keeps in shared memory, and how its sums reach C.
#pragma once

#include "backend/cuda/common.cuh"
#include "backend/cuda/gemm/group_rows.cuh"
#include "backend/cuda/gemm/tile_gemm.h"
#include "backend/cuda/hopper.cuh"

namespace manta::backend::cuda {

constexpr int kPieceBytes = 128, kABoxRows = 128;
// Scales of the rows of a tile; those of a group may start anywhere, copies at every fourth.
constexpr int kScaleBox = kABoxRows + 4, kScaleStage = 160;
constexpr int kMaxPieces = 144;  // of FP8 products: k up to 18432
constexpr int kConsumers = 256, kTileThreads = 384;

struct TileLaunch {
  BlockGemm g;
  CUtensorMap a_map, a_scale_map;
  int num_pieces = 0;  // of k
  int split = 1;       // blocks that share a tile: a cluster
  int m_band = 1;      // row tiles that are walked together, so that W and A stay in L2
  bool wide_store = false;
  GemmWeight weights[kMaxTileWeights];
};

template <bool kFp8_, int kRowTiles_, int kBN_>
struct TileConfig {
  static constexpr bool kFp8 = kFp8_;
  static constexpr int kRowTiles = kRowTiles_;  // of 64 rows, for each of two warpgroups
  static constexpr int kBM = 128 * kRowTiles, kBN = kBN_, kSums = kBN / 2;
  static constexpr int kPieceK = kFp8 ? 128 : 64, kElemBytes = kFp8 ? 1 : 2;
  static constexpr int kABytes = kBM * kPieceBytes, kWBytes = kBN * kPieceBytes;
  static constexpr int kStages = 200 * 1024 / (kABytes + kWBytes);
  // Columns that share a scale of W wherever the tile starts in a block of 128: a tile sees two blocks.
  static constexpr int kScaleColumns = kBN == 112 ? 16 : kBN == 96 ? 32 : kBN == 192 ? 64 : kBN;
  static constexpr int kScales = kBN / kScaleColumns;
  static constexpr int kSumStride = kBN + 8;  // floats, off the banks' period
};

// Which tile of which group.
struct Tile {
  int group = 0, part = 0;
  int m = 0;  // rows of the group; 0: no tile is left
  int m0 = 0, n0 = 0;
  int64_t a_first = 0, c_first = 0;
  int batch = 0;
};

// The groups of a product, made once a block.
struct TileGroups {
  GroupRows rows[kMaxTileGroups];
  int upto[kMaxTileGroups];  // tiles of this group and those before it
};

template <typename Config>
struct TileShared {
  uint8_t a[Config::kStages][Config::kABytes];
  uint8_t w[Config::kStages][Config::kWBytes];
  uint8_t out[kConsumers / 32][16 * 64];  // a warp's 16 rows x 32 bf16
  alignas(128) float scale_a[Config::kStages][Config::kRowTiles][kScaleStage];
  uint64_t full[Config::kStages], empty[Config::kStages];
  // What is made, and what comes next: the tile and the scales of W for the two blocks of columns it sees.
  Tile tile[2];
  float scale_w[2][2][Config::kFp8 ? kMaxPieces : 1];
  uint64_t tile_full[2], tile_empty[2];
  TileGroups groups;
};
template <typename Config>
constexpr int tile_smem_bytes() {
  static_assert(sizeof(TileShared<Config>) + 1024 <= 232448);
  static_assert(sizeof(float) * Config::kBM * Config::kSumStride <=
                Config::kStages * (Config::kABytes + Config::kWBytes));
  return sizeof(TileShared<Config>) + 1024;
}

__device__ __forceinline__ void store_two(const BlockGemm& g, int64_t at, int left, float x, float y) {
  if (g.c_f32) {
    float* c = static_cast<float*>(g.c) + at;
    if (left > 1 && at % 2 == 0) {
      *reinterpret_cast<float2*>(c) = make_float2(x, y);
    } else {
      if (left > 0) c[0] = x;
      if (left > 1) c[1] = y;
    }
    return;
  }
  bf16* c = static_cast<bf16*>(g.c) + at;
  if (left > 0) c[0] = __float2bfloat16_rn(x);
  if (left > 1) c[1] = __float2bfloat16_rn(y);
}

// 64 rows of a warpgroup to C; bf16 through shared memory, so that a row goes out in 64-byte pieces.
template <typename Config>
__device__ __forceinline__ void store_sums(const TileLaunch& launch, TileShared<Config>& s, const Tile& tile, int m0,
                                           const float (&sum)[Config::kSums]) {
  const BlockGemm& g = launch.g;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t column0 = tile.batch * g.c_batch + int64_t{tile.part} * g.n + tile.n0;
  const int row0 = m0 + warp % 4 * 16;
  if (row0 >= tile.m || tile.n0 >= g.n) return;
  if (!launch.wide_store || tile.n0 + Config::kBN > g.n) {
#pragma unroll
    for (int j = 0; j < Config::kBN / 8; ++j) {
      const int column = j * 8 + lane % 4 * 2;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = row0 + lane / 4 + 8 * e;
        if (row >= tile.m) continue;
        store_two(g, (tile.c_first + row) * g.c_stride + column0 + column, g.n - tile.n0 - column, sum[4 * j + 2 * e],
                  sum[4 * j + 2 * e + 1]);
      }
    }
    return;
  }
  uint8_t* out = s.out[warp];
#pragma unroll
  for (int unit = 0; unit < (Config::kBN + 31) / 32; ++unit) {
    constexpr int kGroups = Config::kBN / 8;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < min(4, kGroups - unit * 4); ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int r = lane / 4 + 8 * e, i = 4 * (unit * 4 + j) + 2 * e;
        *reinterpret_cast<__nv_bfloat162*>(out + r * 64 + ((j ^ (r / 2 & 3)) * 16) + lane % 4 * 4) =
            __floats2bfloat162_rn(sum[i], sum[i + 1]);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = i * 8 + lane / 4, chunk = lane % 4, row = row0 + r;
      if (row >= tile.m || unit * 4 + chunk >= kGroups) continue;
      const uint4 v = *reinterpret_cast<const uint4*>(out + r * 64 + ((chunk ^ (r / 2 & 3)) * 16));
      *reinterpret_cast<uint4*>(static_cast<bf16*>(g.c) + (tile.c_first + row) * g.c_stride + column0 + unit * 32 +
                                chunk * 8) = v;
    }
  }
}

// The blocks that share a tile leave their sums in shared memory; each adds up and stores a run of the rows.
template <typename Config>
__device__ void store_shared_tile(const TileLaunch& launch, TileShared<Config>& s, const Tile& tile, int rank,
                                  const float (&sum)[Config::kRowTiles][Config::kSums]) {
  constexpr int kMostSplit = 4, kQuads = Config::kBN / 4;
  const BlockGemm& g = launch.g;
  float* sums = reinterpret_cast<float*>(s.a);
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  named_barrier(1, kConsumers);  // both warpgroups are done with all stages
#pragma unroll
  for (int t = 0; t < Config::kRowTiles; ++t) {
#pragma unroll
    for (int j = 0; j < Config::kBN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = (t * 2 + warpgroup) * 64 + warp * 16 + lane / 4 + 8 * e;
        *reinterpret_cast<float2*>(sums + row * Config::kSumStride + j * 8 + lane % 4 * 2) =
            make_float2(sum[t][4 * j + 2 * e], sum[t][4 * j + 2 * e + 1]);
      }
    }
  }
  cluster_sync();
  const int rows = Config::kBM / launch.split;
  const int64_t column0 = tile.batch * g.c_batch + int64_t{tile.part} * g.n + tile.n0;
#pragma unroll 4
  for (int i = threadIdx.x; i < rows * kQuads; i += kConsumers) {
    const int r = rank * rows + i / kQuads, column = i % kQuads * 4, row = tile.m0 + r;
    const int left = g.n - tile.n0 - column;
    if (row >= tile.m || left <= 0) continue;
    float4 v[kMostSplit];
#pragma unroll
    for (int k = 0; k < kMostSplit; ++k) {
      if (k < launch.split) v[k] = load_remote(sums + r * Config::kSumStride + column, k);
    }
    float4 total = v[0];
#pragma unroll
    for (int k = 1; k < kMostSplit; ++k) {
      if (k < launch.split) {
        total = make_float4(total.x + v[k].x, total.y + v[k].y, total.z + v[k].z, total.w + v[k].w);
      }
    }
    const int64_t at = (tile.c_first + row) * g.c_stride + column0 + column;
    if (launch.wide_store && left >= 4) {
      __nv_bfloat162 two[2] = {__floats2bfloat162_rn(total.x, total.y), __floats2bfloat162_rn(total.z, total.w)};
      *reinterpret_cast<uint2*>(static_cast<bf16*>(g.c) + at) = *reinterpret_cast<uint2*>(two);
    } else {
      store_two(g, at, left, total.x, total.y);
      store_two(g, at + 2, left - 2, total.z, total.w);
    }
  }
}

}  // namespace manta::backend::cuda
