// The kernel behind tile_gemm.h. Of three warpgroups the first two make a tile, each half of its rows; of the third,
// two threads ask the copy engine for pieces of 128 bytes of k, kStages deep, and some fetch the scales of W. The queue
// of pieces runs on from tile to tile.
//
// FP8: a piece's product stands alone (`part`) and is added to the sums with its scales, as the scales ask for. Tiles
// of up to 128 columns have room for two such products, wider ones spend the registers on columns.
#pragma once

#include "backend/cuda/gemm/group_rows.cuh"
#include "backend/cuda/gemm/tile_shared.cuh"

namespace manta::backend::cuda {

// Walks all tiles, `step` apart. Each warp for itself: the lanes hold the groups.
template <typename Config, bool kGrouped>
class TileWalk {
 public:
  __device__ TileWalk(const TileLaunch& launch) : launch_(launch) {
    const BlockGemm& g = launch.g;
    n_tiles_ = (g.n + Config::kBN - 1) / Config::kBN;
    columns_ = n_tiles_ * g.num_parts;
    if constexpr (kGrouped) {
      const int lane = threadIdx.x % 32;
      if (lane < g.groups.num_groups) rows_ = group_rows(g.groups, lane);
      upto_ = row_tiles(rows_.num_rows) * columns_;
      const int mine = upto_;
      for (int d = 1; d < 32; d *= 2) {
        const int below = __shfl_up_sync(~0u, upto_, d);
        if (lane >= d) upto_ += below;
      }
      below_ = upto_ - mine;
      num_tiles_ = __shfl_sync(~0u, upto_, 31);
    } else {
      m_tiles_ = row_tiles(g.m);
      num_tiles_ = m_tiles_ * columns_ * g.num_batches;
    }
    next_ = blockIdx.x / launch.split;
    step_ = gridDim.x / launch.split;
  }

  __device__ bool next(Tile& tile) {
    if (next_ >= num_tiles_) return false;
    int at = next_, m_tiles = m_tiles_;
    next_ += step_;
    const BlockGemm& g = launch_.g;
    if constexpr (kGrouped) {
      tile.group = __ffs(__ballot_sync(~0u, upto_ > at)) - 1;
      at -= __shfl_sync(~0u, below_, tile.group);
      tile.m = __shfl_sync(~0u, rows_.num_rows, tile.group);
      const auto batch_row = __shfl_sync(~0u, rows_.batch_row, tile.group);
      const auto inner_row = __shfl_sync(~0u, rows_.inner_row, tile.group);
      tile.a_first = g.a_is_batch ? batch_row : inner_row;
      tile.c_first = g.c_is_batch ? batch_row : inner_row;
      m_tiles = row_tiles(tile.m);
    } else {
      tile.m = g.m;
      tile.batch = at / (m_tiles * columns_);
      at %= m_tiles * columns_;
    }
    // Bands of row tiles; inside a band all rows of one column of tiles come first.
    const int band = at / (launch_.m_band * columns_), first = band * launch_.m_band;
    const int height = min(launch_.m_band, m_tiles - first);
    at -= first * columns_;
    const int column = at / height;
    tile.m0 = (first + at % height) * Config::kBM;
    tile.part = column / n_tiles_;
    tile.n0 = column % n_tiles_ * Config::kBN;
    return true;
  }

 private:
  static __device__ int row_tiles(int rows) { return (rows + Config::kBM - 1) / Config::kBM; }

  const TileLaunch& launch_;
  int n_tiles_ = 0, columns_ = 0, m_tiles_ = 0, num_tiles_ = 0, next_ = 0, step_ = 1;
  GroupRows rows_;
  int upto_ = 0, below_ = 0;
};

// Position in the ring of stages: its parity flips each round.
template <int kStages>
struct Ring {
  int stage = 0, round = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      ++round;
    }
  }
};

__device__ __forceinline__ int first_piece(const TileLaunch& launch, int rank) {
  return launch.num_pieces * rank / launch.split;
}

// One thread asks for W, one of another warp for A: a thread takes about 100 cycles to ask.
enum class Operand { kA, kW };

template <typename Config, bool kGrouped, Operand kOperand>
__device__ void fetch_tiles(const TileLaunch& launch, TileShared<Config>& s, int rank) {
  const BlockGemm& g = launch.g;
  TileWalk<Config, kGrouped> walk(launch);
  Ring<Config::kStages> ring;
  Tile tile;
  while (walk.next(tile)) {
    if (threadIdx.x % 32 != 0) continue;
    constexpr int kMap = weight_map_index(Config::kBN);
    const CUtensorMap* w_map = launch.weights[tile.group * g.num_parts + tile.part].maps + kMap;
    const int w_row = tile.n0 + (g.w_stride > 0 ? 0 : static_cast<int>(tile.batch * g.w_batch / g.k));
    const int w_k = g.w_stride > 0 ? static_cast<int>(tile.batch * g.w_batch) : 0;
    const int a_row = static_cast<int>(tile.a_first + tile.m0);
    const int a_k = static_cast<int>(tile.batch * g.a_batch);
    const int a_boxes = min(Config::kRowTiles, (tile.m - tile.m0 + kABoxRows - 1) / kABoxRows);
    for (int p = first_piece(launch, rank); p < first_piece(launch, rank + 1); ++p) {
      uint64_t* full = &s.full[ring.stage];
      barrier_wait(&s.empty[ring.stage], (ring.round & 1) ^ 1);
      const int k = p * Config::kPieceK;
      if constexpr (kOperand == Operand::kW) {
        barrier_arrive_expect(full, Config::kWBytes);
        tensor_load(s.w[ring.stage], w_map, full, w_k + k, w_row);
      } else {
        constexpr int kScaleBytes = Config::kFp8 ? kScaleBox * sizeof(float) : 0;
        barrier_arrive_expect(full, a_boxes * (kABoxRows * kPieceBytes + kScaleBytes));
        if (kScaleBytes > 0 && a_boxes > 0)
          tensor_load(s.scale_a[ring.stage], &launch.a_scale_map, full, a_row / 4 * 4, p);
        for (int i = 0; i < a_boxes; ++i) {
          tensor_load(s.a[ring.stage] + i * kABoxRows * kPieceBytes, &launch.a_map, full, a_k + k,
                      a_row + i * kABoxRows);
        }
      }
      ring.advance();
    }
  }
}

// One thread a scale of W.
template <typename Config, bool kGrouped>
__device__ void fetch_scales(const TileLaunch& launch, TileShared<Config>& s, int rank) {
  const BlockGemm& g = launch.g;
  const int lane = threadIdx.x % 32;
  TileWalk<Config, kGrouped> walk(launch);
  Ring<Config::kStages> ring;
  Tile tile;
  while (walk.next(tile)) {
    if (lane >= Config::kScales) continue;
    const int block = min(tile.n0 + lane * Config::kScaleColumns, g.n - 1) / kScaleBlock;
    const float* scale_w =
        launch.weights[tile.group * g.num_parts + tile.part].scale + int64_t{block} * launch.num_pieces;
    for (int p = first_piece(launch, rank); p < first_piece(launch, rank + 1); ++p) {
      barrier_wait(&s.empty[ring.stage], (ring.round & 1) ^ 1);
      copy_async_4(&s.scale_w[ring.stage][lane], scale_w + p, 4);
      barrier_arrive_copies(&s.full[ring.stage]);
      ring.advance();
    }
  }
}

// The same for all threads of a warp, and the compiler knows it.
__device__ __forceinline__ int warpgroup_index() {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0);
}

// A stage may be filled again, as far as this warp is concerned.
__device__ __forceinline__ void release_stage(uint64_t* empty) {
  if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

template <int kBN>
__device__ __forceinline__ void wgmma_e4m3(float (&d)[kBN / 2], uint64_t a, uint64_t b, bool add) {
  if constexpr (kBN == 192) {
    wgmma_e4m3_n192(d, a, b, add);
  } else if constexpr (kBN == 128) {
    wgmma_e4m3_n128(d, a, b, add);
  } else if constexpr (kBN == 96) {
    wgmma_e4m3_n96(d, a, b, add);
  } else if constexpr (kBN == 64) {
    wgmma_e4m3_n64(d, a, b, add);
  } else {
    wgmma_e4m3_n32(d, a, b, add);
  }
}

// What a warpgroup makes of its rows of a tile, piece after piece of k.
template <typename Config>
class RowSums {
 public:
  static constexpr int kSums = Config::kSums;
  __device__ __forceinline__ RowSums(TileShared<Config>& s, Ring<Config::kStages>& ring) : s_(s), ring_(ring) {
    warpgroup_ = warpgroup_index();
    row_ = warpgroup_ * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    a_ = k_major_low(s.a[0] + warpgroup_ * 64 * kPieceBytes);
    w_ = k_major_low(s.w[0]);
    if (Config::kTwoDeep && warpgroup_ == 1)
      named_barrier_arrive(kTurns, kConsumers);  // the first turn is warpgroup 0's
  }

  // Before a tile: its first row of A.
  __device__ __forceinline__ void begin(int64_t first_row) { shift_ = static_cast<int>(first_row % 4); }

  // FP8: a warpgroup has one row tile. One product at a time: the other warpgroup's run while this one adds up.
  __device__ __forceinline__ void multiply_singly(int pieces, float (&sum)[kSums]) {
    float part[kSums];
    for (int p = 0; p < pieces; ++p) {
      const int stage = next_stage();
      float scale[Config::kScales][2];
      load_scales(stage, scale);
      start(stage, part);
      wgmma_wait<0>();
      wgmma_hold(part);
      release_stage(&s_.empty[stage]);
      add_scaled(part, scale, sum);
    }
  }

  // Products run two deep: while one is added to the sums with its scales, the next is on its way. in_turns: the other
  // warpgroup has rows too, and the two ask for products in turns; side by side both would wait for the tensor cores,
  // then both add up while those have nothing to do.
  __device__ __forceinline__ void multiply_doubly(int pieces, bool in_turns, float (&sum)[kSums]) {
    in_turns_ = in_turns;
    float part[2][kSums];
    int before = next_stage();
    start(before, part[0]);
    int p = 1;
    for (; p + 1 < pieces; p += 2) {
      before = step(before, part[1], part[0], sum);
      before = step(before, part[0], part[1], sum);
    }
    if (p < pieces) {
      before = step(before, part[1], part[0], sum);
      finish<0>(before, part[1], sum);
    } else {
      finish<0>(before, part[0], sum);
    }
    release_stage(&s_.empty[before]);
  }

  // A warpgroup without rows keeps step with the stages.
  __device__ __forceinline__ void skip(int pieces) {
    for (int p = 0; p < pieces; ++p) release_stage(&s_.empty[next_stage()]);
  }

  // bf16: no scales, the sums are the products' own.
  template <int kRowTiles>
  __device__ __forceinline__ void multiply_bf16(int pieces, float (&sum)[kRowTiles][kSums]) {
    int before = 0;
    for (int p = 0; p < pieces; ++p) {
      const int stage = next_stage();
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) wgmma_hold(sum[t]);
      wgmma_begin();
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          wgmma_bf16_n128(sum[t], k_major_of(a_ + (stage * Config::kABytes + t * 128 * kPieceBytes + k * 32) / 16),
                          k_major_of(w_ + (stage * Config::kWBytes + k * 32) / 16), true);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (p > 0) release_stage(&s_.empty[before]);
      before = stage;
    }
    wgmma_wait<0>();
    release_stage(&s_.empty[before]);
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) wgmma_hold(sum[t]);
  }

 private:
  __device__ __forceinline__ int next_stage() {
    const int stage = __shfl_sync(~0u, ring_.stage, 0);  // see k_major_low
    barrier_wait(&s_.full[stage], ring_.round & 1);
    ring_.advance();
    return stage;
  }

  __device__ __forceinline__ void start(int stage, float (&part)[kSums]) {
    const uint32_t a = a_ + stage * (Config::kABytes / 16), w = w_ + stage * (Config::kWBytes / 16);
    wgmma_hold(part);
    if (in_turns_) named_barrier(kTurns + warpgroup_, kConsumers);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_e4m3<Config::kBN>(part, k_major_of(a + k * 2), k_major_of(w + k * 2), k > 0);
    wgmma_commit();
    if (in_turns_) named_barrier_arrive(kTurns + 1 - warpgroup_, kConsumers);
  }

  __device__ __forceinline__ void load_scales(int stage, float (&scale)[Config::kScales][2]) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float scale_a = s_.scale_a[stage][row_ + shift_ + 8 * e];
#pragma unroll
      for (int i = 0; i < Config::kScales; ++i) scale[i][e] = s_.scale_w[stage][i] * scale_a;
    }
  }

  __device__ __forceinline__ void add_scaled(const float (&part)[kSums], const float (&scale)[Config::kScales][2],
                                             float (&sum)[kSums]) {
    constexpr int kSumsOfScale = Config::kScaleColumns / 2;
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] += part[i] * scale[i / kSumsOfScale][i / 2 % 2];
  }

  template <int kRunning>
  __device__ __forceinline__ void finish(int stage, float (&part)[kSums], float (&sum)[kSums]) {
    float scale[Config::kScales][2];
    load_scales(stage, scale);
    wgmma_wait<kRunning>();
    wgmma_hold(part);
    add_scaled(part, scale, sum);
  }

  __device__ __forceinline__ int step(int before, float (&part)[kSums], float (&part_before)[kSums],
                                      float (&sum)[kSums]) {
    const int stage = next_stage();
    start(stage, part);
    finish<1>(before, part_before, sum);
    release_stage(&s_.empty[before]);
    return stage;
  }

  TileShared<Config>& s_;
  Ring<Config::kStages>& ring_;
  static constexpr int kTurns = 2;  // named barriers: a warpgroup's turn
  bool in_turns_ = false;
  int warpgroup_, row_;
  int shift_ = 0;   // of the tile's scales in their box
  uint32_t a_, w_;  // descriptors of stage 0
};

template <typename Config, bool kGrouped>
__device__ void multiply_tiles(const TileLaunch& launch, TileShared<Config>& s, int rank) {
  constexpr int kRowTiles = Config::kRowTiles, kSums = Config::kSums;
  const int warpgroup = warpgroup_index();
  TileWalk<Config, kGrouped> walk(launch);
  Ring<Config::kStages> ring;
  RowSums<Config> rows(s, ring);
  Tile tile;
  while (walk.next(tile)) {
    float sum[kRowTiles][kSums];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sum[t][i] = 0.0f;
    }
    const int pieces = first_piece(launch, rank + 1) - first_piece(launch, rank);
    rows.begin(tile.a_first + tile.m0);
    const int left = tile.m - tile.m0 - warpgroup * 64;  // rows from this warpgroup's first one on
    if constexpr (!Config::kFp8) {
      rows.template multiply_bf16<kRowTiles>(pieces, sum);
    } else if (left <= 0) {
      rows.skip(pieces);
    } else if constexpr (Config::kTwoDeep) {
      rows.multiply_doubly(pieces, tile.m - tile.m0 > 64, sum[0]);
    } else {
      rows.multiply_singly(pieces, sum[0]);
    }
    if (launch.split > 1) {
      store_shared_tile<Config>(launch, s, tile, rank, sum);
    } else {
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        store_sums<Config>(launch, s, tile, tile.m0 + (t * 2 + warpgroup) * 64, sum[t]);
      }
    }
  }
}

template <typename Config, bool kGrouped>
__global__ void __launch_bounds__(kTileThreads, 1) tile_gemm_kernel(const __grid_constant__ TileLaunch launch) {
  extern __shared__ uint8_t raw[];
  auto& s = *reinterpret_cast<TileShared<Config>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      barrier_init(&s.full[i], 2 + (Config::kFp8 ? Config::kScales : 0));
      barrier_init(&s.empty[i], kConsumers / 32);
    }
    barrier_init_fence();
  }
  __syncthreads();
  // Blocks that share a tile meet twice, every thread of them: when all sums are there, and before one may leave.
  const int rank = __shfl_sync(~0u, launch.split > 1 ? cluster_rank() : 0, 0);
  if (threadIdx.x >= kConsumers) {
    registers_give<40>();
    const int role = (threadIdx.x - kConsumers) / 32;
    if (role == 0) fetch_tiles<Config, kGrouped, Operand::kW>(launch, s, rank);
    if (role == 1) fetch_tiles<Config, kGrouped, Operand::kA>(launch, s, rank);
    if (Config::kFp8 && role == 2) fetch_scales<Config, kGrouped>(launch, s, rank);
    __syncwarp();
    if (launch.split > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    registers_take<232>();
    multiply_tiles<Config, kGrouped>(launch, s, rank);
    if (launch.split > 1) cluster_sync();
  }
}

}  // namespace manta::backend::cuda
