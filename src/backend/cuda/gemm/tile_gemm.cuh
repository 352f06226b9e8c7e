// The kernel behind tile_gemm.h. Of three warpgroups the first two make a tile, each half of its rows; of the third,
// one thread asks the copy engine for pieces of 128 bytes of k, kStages deep, and a warp says which tile comes next and
// fetches its scales of W. Queues run on from tile to tile.
//
// FP8: a piece's product stands alone (`part`) and is added to the sums with its scales, as the scales ask for; while
// one warpgroup adds up, the other's products run.
#pragma once

#include "backend/cuda/gemm/tile_shared.cuh"

namespace manta::backend::cuda {

// Walks all tiles, as many apart as there are clusters; each thread for itself.
template <typename Config, bool kGrouped>
class TileWalk {
 public:
  // By one warp, before the walks.
  static __device__ void prepare(const TileLaunch& launch, TileGroups& groups) {
    const int lane = threadIdx.x % 32;
    const GroupRows rows = lane < launch.g.groups.num_groups ? group_rows(launch.g.groups, lane) : GroupRows{};
    int upto = row_tiles(rows.num_rows) * columns(launch);
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(~0u, upto, d);
      if (lane >= d) upto += below;
    }
    groups.rows[lane] = rows;
    groups.upto[lane] = upto;
  }

  __device__ TileWalk(const TileLaunch& launch, const TileGroups& groups)
      : launch_(launch), groups_(groups), next_(blockIdx.x / launch.split) {}

  __device__ bool next(Tile& tile) {
    const BlockGemm& g = launch_.g;
    int at = next_;
    next_ += gridDim.x / launch_.split;
    if constexpr (kGrouped) {
      if (at >= groups_.upto[kMaxTileGroups - 1]) return false;
      while (at >= groups_.upto[group_]) ++group_;
      if (group_ > 0) at -= groups_.upto[group_ - 1];
      const GroupRows& rows = groups_.rows[group_];
      tile.group = group_;
      tile.m = rows.num_rows;
      tile.a_first = g.a_is_batch ? rows.batch_row : rows.inner_row;
      tile.c_first = g.c_is_batch ? rows.batch_row : rows.inner_row;
    } else {
      const int of_batch = row_tiles(g.m) * columns(launch_);
      if (at >= of_batch * g.num_batches) return false;
      tile.m = g.m;
      tile.batch = at / of_batch;
      at %= of_batch;
    }
    place(at, row_tiles(tile.m), tile);
    return true;
  }

 private:
  static __device__ int row_tiles(int rows) { return (rows + Config::kBM - 1) / Config::kBM; }
  static __device__ int n_tiles(const TileLaunch& launch) { return (launch.g.n + Config::kBN - 1) / Config::kBN; }
  static __device__ int columns(const TileLaunch& launch) { return n_tiles(launch) * launch.g.num_parts; }

  // Bands of row tiles; inside a band all rows of one column of tiles come first.
  __device__ void place(int at, int row_tiles, Tile& tile) const {
    const int band = at / (launch_.m_band * columns(launch_)), first = band * launch_.m_band;
    const int height = min(launch_.m_band, row_tiles - first);
    at -= first * columns(launch_);
    const int column = at / height;
    tile.m0 = (first + at % height) * Config::kBM;
    tile.part = column / n_tiles(launch_);
    tile.n0 = column % n_tiles(launch_) * Config::kBN;
  }

  const TileLaunch& launch_;
  const TileGroups& groups_;
  int next_, group_ = 0;
};

// Position in the ring of stages: its parity flips each round.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct Pieces {
  int first, count;
};
__device__ __forceinline__ Pieces pieces_of(const TileLaunch& launch, int rank) {
  if (launch.split == 1) return {0, launch.num_pieces};
  const int first = launch.num_pieces * rank / launch.split;
  return {first, launch.num_pieces * (rank + 1) / launch.split - first};
}

// By one thread. FP8 uses stages in rounds of all, so that the compiler knows which stage a consumer's piece is in; a
// tile's last round may have stages without a piece.
template <typename Config, bool kGrouped>
__device__ void fetch_tiles(const TileLaunch& launch, TileShared<Config>& s, int rank) {
  constexpr int kMap = weight_map_index(Config::kBN), kBoxBytes = kABoxRows * kPieceBytes;
  constexpr int kScaleBytes = Config::kFp8 ? kScaleBox * sizeof(float) : 0;
  const BlockGemm& g = launch.g;
  const Pieces pieces = pieces_of(launch, rank);
  TileWalk<Config, kGrouped> walk(launch, s.groups);
  Ring<Config::kStages> ring;
  Tile tile;
  while (walk.next(tile)) {
    const CUtensorMap* w_map = launch.weights[tile.group * g.num_parts + tile.part].maps + kMap;
    const int w_row = tile.n0 + (g.w_stride > 0 ? 0 : static_cast<int>(tile.batch * g.w_batch / g.k));
    const int a_row = static_cast<int>(tile.a_first + tile.m0);
    const int boxes = min(Config::kRowTiles, (tile.m - tile.m0 + kABoxRows - 1) / kABoxRows);
    const int bytes = Config::kWBytes + boxes * (kBoxBytes + kScaleBytes);
    int w_k = (g.w_stride > 0 ? static_cast<int>(tile.batch * g.w_batch) : 0) + pieces.first * Config::kPieceK;
    int a_k = static_cast<int>(tile.batch * g.a_batch) + pieces.first * Config::kPieceK;
    for (int p = pieces.first; p < pieces.first + pieces.count; ++p) {
      uint64_t* full = &s.full[ring.stage];
      barrier_wait(&s.empty[ring.stage], ring.parity ^ 1);
      barrier_arrive_expect(full, bytes);
#pragma unroll
      for (int box = 0; box < Config::kRowTiles; ++box) {
        if (box >= boxes) break;
        const int row = a_row + box * kABoxRows;
        tensor_load(s.a[ring.stage] + box * kBoxBytes, &launch.a_map, full, a_k, row);
        if (kScaleBytes > 0) tensor_load(s.scale_a[ring.stage][box], &launch.a_scale_map, full, row / 4 * 4, p);
      }
      tensor_load(s.w[ring.stage], w_map, full, w_k, w_row);
      w_k += Config::kPieceK;
      a_k += Config::kPieceK;
      ring.advance();
    }
    while (Config::kFp8 && ring.stage > 0) {
      barrier_wait(&s.empty[ring.stage], ring.parity ^ 1);
      barrier_arrive(&s.full[ring.stage]);
      ring.advance();
    }
  }
}

// By one warp: what the next tile is, with its scales of W.
template <typename Config, bool kGrouped>
__device__ void announce_tiles(const TileLaunch& launch, TileShared<Config>& s, int rank) {
  const BlockGemm& g = launch.g;
  const Pieces pieces = pieces_of(launch, rank);
  TileWalk<Config, kGrouped> walk(launch, s.groups);
  Ring<2> ring;
  for (bool more = true; more; ring.advance()) {
    Tile tile;
    more = walk.next(tile);
    barrier_wait(&s.tile_empty[ring.stage], ring.parity ^ 1);
    if (threadIdx.x % 32 == 0) s.tile[ring.stage] = tile;
    if (Config::kFp8 && more) {
      const float* scale = launch.weights[tile.group * g.num_parts + tile.part].scale + pieces.first;
      const int last = (g.n - 1) / kScaleBlock, block = min(tile.n0 / kScaleBlock, last);
      for (int i = threadIdx.x % 32; i < pieces.count; i += 32) {
        s.scale_w[ring.stage][0][i] = scale[int64_t{block} * launch.num_pieces + i];
        s.scale_w[ring.stage][1][i] = scale[int64_t{min(block + 1, last)} * launch.num_pieces + i];
      }
    }
    barrier_arrive(&s.tile_full[ring.stage]);
  }
}

// The same for all threads of a warp, and the compiler knows it.
__device__ __forceinline__ int warpgroup_index() {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0);
}

// What a warpgroup makes of its rows of a tile, piece after piece of k.
template <typename Config>
class RowSums {
 public:
  static constexpr int kSums = Config::kSums, kRowTiles = Config::kRowTiles, kStages = Config::kStages;
  __device__ __forceinline__ explicit RowSums(TileShared<Config>& s) : s_(s) {
    const int warpgroup = warpgroup_index();
    row_ = warpgroup * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    a_ = k_major_low(s.a[0] + warpgroup * 64 * kPieceBytes);
    w_ = k_major_low(s.w[0]);
  }

  // A tile's pieces; none where the warpgroup has no rows in it, but that keeps step with the stages.
  __device__ __forceinline__ void multiply_fp8(const Tile& tile, const void* scale_w, bool has_rows, int pieces,
                                               float (&sum)[kRowTiles][kSums]) {
    const int shift = static_cast<int>((tile.a_first + tile.m0) % 4);  // of the scales in their box
    scale_a_ = shared_address(&s_.scale_a[0][0][row_ + shift]);
    scale_w_ = shared_address(scale_w);
    columns_of_first_ = kScaleBlock - tile.n0 % kScaleBlock;
    has_rows ? add_pieces(pieces, sum) : skip_pieces(pieces);
  }

  // bf16: no scales, the sums are the products' own.
  __device__ __forceinline__ void multiply_bf16(int pieces, float (&sum)[kRowTiles][kSums]) {
    int before = 0;
    for (int p = 0; p < pieces; ++p) {
      const int stage = __shfl_sync(~0u, ring_.stage, 0);  // see k_major_low
      barrier_wait(&s_.full[stage], ring_.parity);
      ring_.advance();
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) wgmma_hold(sum[t]);
      wgmma_begin();
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) start(stage, t, sum[t], true);
      wgmma_commit();
      wgmma_wait<1>();
      if (p > 0) release(before);
      before = stage;
    }
    wgmma_wait<0>();
    release(before);
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) wgmma_hold(sum[t]);
  }

 private:
  // A stage may be filled again, as far as this warp is concerned.
  __device__ __forceinline__ void release(int stage) {
    if (threadIdx.x % 32 == 0) barrier_arrive(&s_.empty[stage]);
  }

  __device__ __forceinline__ void pass(int stage) {
    barrier_wait(&s_.full[stage], ring_.parity);
    release(stage);
  }

  __device__ __forceinline__ void add_pieces(int pieces, float (&sum)[kRowTiles][kSums]) {
    float part[kSums];
    for (; pieces >= kStages; pieces -= kStages) {
      // A shuffle tells the compiler that it is the same for all threads, who then need not meet after each wait.
      ring_.parity = __shfl_sync(~0u, ring_.parity, 0);
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) add_piece(stage, part, sum);
      ring_.parity ^= 1;
    }
    if (pieces == 0) return;
#pragma unroll 1
    for (int stage = 0; stage < pieces; ++stage) add_piece(stage, part, sum);
    for (int stage = pieces; stage < kStages; ++stage) pass(stage);
    ring_.parity ^= 1;
  }

  __device__ __forceinline__ void skip_pieces(int pieces) {
    for (; pieces > 0; pieces -= kStages) {
      for (int stage = 0; stage < kStages; ++stage) pass(stage);
      ring_.parity ^= 1;
    }
  }

  __device__ __forceinline__ void start(int stage, int t, float (&d)[kSums], bool add) {
    const uint32_t a = a_ + stage * (Config::kABytes / 16) + t * (128 * kPieceBytes / 16);
    const uint32_t w = w_ + stage * (Config::kWBytes / 16);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (Config::kFp8) {
        wgmma_e4m3(d, k_major_of(a + k * 2), k_major_of(w + k * 2), add || k > 0);
      } else {
        wgmma_bf16(d, k_major_of(a + k * 2), k_major_of(w + k * 2), add || k > 0);
      }
    }
  }

  __device__ __forceinline__ void add_piece(int stage, float (&part)[kSums], float (&sum)[kRowTiles][kSums]) {
    const float scale_w[2] = {load_shared(scale_w_), load_shared(scale_w_ + kMaxPieces * 4)};
    scale_w_ += 4;
    barrier_wait(&s_.full[stage], ring_.parity);
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      // All reads of the stage come before its products: these end the stage's use.
      const uint32_t from = scale_a_ + (stage * kRowTiles + t) * kScaleStage * 4;
      const float scale_a[2] = {load_shared(from), load_shared(from + 8 * 4)};
      wgmma_hold(part);
      wgmma_begin();
      start(stage, t, part, false);
      wgmma_commit();
      wgmma_hold(part);
      wgmma_wait<0>();
      wgmma_hold(part);
      if (t == kRowTiles - 1) release(stage);
      add_scaled(part, scale_a, scale_w, sum[t]);
    }
  }

  __device__ __forceinline__ void add_scaled(const float (&part)[kSums], const float (&scale_a)[2],
                                             const float (&scale_w)[2], float (&sum)[kSums]) {
    constexpr int kSumsOfScale = Config::kScaleColumns / 2;
    float scale[Config::kScales][2];
#pragma unroll
    for (int i = 0; i < Config::kScales; ++i) {
      const bool first = i == 0 || i * Config::kScaleColumns < columns_of_first_;
#pragma unroll
      for (int e = 0; e < 2; ++e) scale[i][e] = scale_a[e] * (first ? scale_w[0] : scale_w[1]);
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] += part[i] * scale[i / kSumsOfScale][i / 2 % 2];
  }

  TileShared<Config>& s_;
  int row_;
  Ring<kStages> ring_;
  int columns_of_first_ = 0;  // of the tile, in its first block of scales
  uint32_t a_, w_;            // descriptors of stage 0
  // Addresses of shared memory: the scales of the first stage for this thread's first row, and of the next piece.
  uint32_t scale_a_ = 0, scale_w_ = 0;
};

template <typename Config, bool kGrouped>
__device__ void multiply_tiles(const TileLaunch& launch, TileShared<Config>& s, int rank) {
  constexpr int kRowTiles = Config::kRowTiles, kSums = Config::kSums;
  const int warpgroup = warpgroup_index(), pieces = pieces_of(launch, rank).count;
  RowSums<Config> rows(s);
  for (Ring<2> ring;; ring.advance()) {
    barrier_wait(&s.tile_full[ring.stage], ring.parity);
    const Tile& tile = s.tile[ring.stage];
    // Shuffles tell the compiler that all threads go the same way.
    if (__shfl_sync(~0u, tile.m, 0) == 0) break;
    const bool has_rows = __shfl_sync(~0u, tile.m - tile.m0 > warpgroup * 64, 0);
    float sum[kRowTiles][kSums];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sum[t][i] = 0.0f;
    }
    if constexpr (Config::kFp8) {
      rows.multiply_fp8(tile, s.scale_w[ring.stage], has_rows, pieces, sum);
    } else {
      rows.multiply_bf16(pieces, sum);
    }
    if (launch.split > 1) {
      store_shared_tile<Config>(launch, s, tile, rank, sum);
    } else {
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        store_sums<Config>(launch, s, tile, tile.m0 + (t * 2 + warpgroup) * 64, sum[t]);
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&s.tile_empty[ring.stage]);
  }
}

template <typename Config>
__device__ void make_barriers(TileShared<Config>& s) {
  for (int i = 0; i < Config::kStages; ++i) {
    barrier_init(&s.full[i], 1);
    barrier_init(&s.empty[i], kConsumers / 32);
  }
  for (int i = 0; i < 2; ++i) {
    barrier_init(&s.tile_full[i], 32);
    barrier_init(&s.tile_empty[i], kConsumers / 32);
  }
  barrier_init_fence();
}

template <typename Config, bool kGrouped>
__global__ void __launch_bounds__(kTileThreads, 1) tile_gemm_kernel(const __grid_constant__ TileLaunch launch) {
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& s = *reinterpret_cast<TileShared<Config>*>(raw);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);
  if (threadIdx.x == 0) make_barriers(s);
  if (kGrouped && warp == 1) TileWalk<Config, kGrouped>::prepare(launch, s.groups);
  __syncthreads();
  // Blocks that share a tile meet twice, every thread of them: when all sums are there, and before one may leave.
  const int rank = __shfl_sync(~0u, launch.split > 1 ? cluster_rank() : 0, 0);
  if (warp >= kConsumers / 32) {
    registers_give<40>();
    if (warp == kConsumers / 32 && elect_one()) fetch_tiles<Config, kGrouped>(launch, s, rank);
    if (warp == kConsumers / 32 + 1) announce_tiles<Config, kGrouped>(launch, s, rank);
    __syncwarp();
    if (launch.split > 1) cluster_sync();
  } else {
    registers_take<232>();
    multiply_tiles<Config, kGrouped>(launch, s, rank);
  }
  if (launch.split > 1) cluster_sync();
}

}  // namespace manta::backend::cuda
