#include "backend/cuda/gemm/tile_gemm.cuh"

#include "backend/cuda/tensor_map.h"

namespace manta::backend::cuda {
namespace {

// Clusters of 1, 2 and 4 blocks that run at a time: one block fills a multiprocessor, and a cluster stays inside one of
// the groups of multiprocessors, which are not all of one size.
int clusters_at_a_time[3] = {132, 66, 32};

int room_for(int split) {
  return clusters_at_a_time[split >= 4 ? 2 : split - 1];
}

bool is_fp8(const BlockGemm& g) {
  return g.a_scale != nullptr;
}

// Rows of A that the copies may touch.
int64_t rows_of_a(const BlockGemm& g, bool grouped) {
  if (!grouped) return g.m;
  return int64_t{g.groups.window_rows} * (g.groups.masked ? g.groups.num_groups : 1);
}

MapShape shape_of_a(const BlockGemm& g, bool grouped) {
  // With batches along a row a piece of k may not end before the next batch begins; k is then a multiple of a piece.
  return {.data = g.a,
          .elem_bytes = is_fp8(g) ? 1 : 2,
          .columns = g.num_batches > 1 ? g.a_stride : g.k,
          .rows = rows_of_a(g, grouped),
          .row_stride = g.a_stride,
          .box_rows = kABoxRows};
}

// Groups of scales below each other: a box is one group of a row tile, from a multiple of 16 bytes on.
MapShape scales_of_a(const BlockGemm& g, bool grouped) {
  return {.data = g.a_scale,
          .elem_bytes = sizeof(float),
          .columns = rows_of_a(g, grouped),
          .rows = (g.k + 127) / 128,
          .row_stride = g.a_scale_stride,
          .box_rows = 1,
          .box_columns = kScaleBox};
}

int pieces_of(const BlockGemm& g) {
  return is_fp8(g) ? (g.k + 127) / 128 : (g.k + 63) / 64;
}

constexpr int kBand = 8;  // row tiles that are walked together

// Of a group of a grouped product, as if groups were half full.
int tiles_above_each_other(const BlockGemm& g, bool grouped, const TileChoice& c) {
  const RowGroups& r = g.groups;
  const int rows = !grouped ? g.m : r.masked ? r.window_rows / 2 : r.window_rows / r.num_groups;
  return max(1, (rows + c.rows - 1) / c.rows);
}

int count_tiles(const BlockGemm& g, bool grouped, const TileChoice& c) {
  const int groups = grouped ? g.groups.num_groups : g.num_batches;
  return tiles_above_each_other(g, grouped, c) * groups * ((g.n + c.columns - 1) / c.columns) * g.num_parts;
}

// Clock cycles, roughly: rounds of tiles times the slowest of the warpgroups, L2 and DRAM for a piece.
double cost_of(const BlockGemm& g, bool grouped, const TileChoice& c) {
  constexpr double kL2 = 45, kDram = 2240;  // bytes a cycle: of a multiprocessor, of the device
  const int tiles = count_tiles(g, grouped, c), room = room_for(c.split);
  const double rounds = (tiles + room - 1) / room, busy = min(tiles, room) * c.split;
  const double products = c.columns > 128 ? 1400 : 440 + 2 * c.columns;  // as measured
  const double l2 = (c.rows + c.columns) * double{kPieceBytes} / kL2;
  // Row tiles of a band read the same columns of W.
  const int reads_w = min(tiles_above_each_other(g, grouped, c), kBand);
  const double dram = c.columns * double{kPieceBytes} * busy / kDram / reads_w;
  return rounds * (pieces_of(g) / c.split * max(products, max(l2, dram)) + 1000) + (c.split > 1 ? 4500 : 0);
}

template <typename Config, bool kGrouped>
int launch(const BlockGemm& g, const GemmWeight* weights, const TileChoice& choice, cudaStream_t stream) {
  TileLaunch l;
  l.g = g;
  const int num_weights = g.num_parts * (kGrouped ? g.groups.num_groups : 1);
  for (int i = 0; i < num_weights; ++i) l.weights[i] = weights[i];
  l.a_map = encode_map(shape_of_a(g, kGrouped));
  if (Config::kFp8) l.a_scale_map = encode_map(scales_of_a(g, kGrouped));
  l.num_pieces = pieces_of(g);
  l.split = choice.split;
  l.m_band = kBand / Config::kRowTiles;
  l.wide_store = !g.c_f32 && g.c_stride % 8 == 0 && g.c_batch % 8 == 0 && reinterpret_cast<uintptr_t>(g.c) % 16 == 0 &&
                 (g.num_parts == 1 || g.n % 8 == 0);
  cudaLaunchConfig_t config = {};
  config.blockDim = kTileThreads;
  config.dynamicSmemBytes = tile_smem_bytes<Config>();
  config.stream = stream;
  const int tiles = count_tiles(g, kGrouped, choice), room = room_for(1);
  config.gridDim = kGrouped ? room : choice.split > 1 ? tiles * choice.split : min(tiles, room);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(l.split), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = l.split > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, tile_gemm_kernel<Config, kGrouped>, l);
}

template <bool kGrouped>
int launch_fp8(const BlockGemm& g, const GemmWeight* weights, const TileChoice& c, cudaStream_t stream) {
  if (c.columns == 192) return launch<TileConfig<true, 1, 192>, kGrouped>(g, weights, c, stream);
  if (c.columns == 128) return launch<TileConfig<true, 1, 128>, kGrouped>(g, weights, c, stream);
  if constexpr (!kGrouped) {
    if (c.columns == 112) return launch<TileConfig<true, 1, 112>, false>(g, weights, c, stream);
    if (c.columns == 64) return launch<TileConfig<true, 1, 64>, false>(g, weights, c, stream);
    if (c.columns == 32) return launch<TileConfig<true, 1, 32>, false>(g, weights, c, stream);
  }
  return launch<TileConfig<true, 1, 96>, kGrouped>(g, weights, c, stream);
}

template <typename Config, bool kGrouped>
int prepare() {
  return cudaFuncSetAttribute(tile_gemm_kernel<Config, kGrouped>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              tile_smem_bytes<Config>());
}

int count_clusters() {
  using Config = TileConfig<true, 1, 128>;
  for (int i = 0; i < 3; ++i) {
    cudaLaunchConfig_t config = {};
    config.gridDim = 8 << i;
    config.blockDim = kTileThreads;
    config.dynamicSmemBytes = tile_smem_bytes<Config>();
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {1u << i, 1, 1};
    config.attrs = &cluster;
    config.numAttrs = 1;
    const int code = cudaOccupancyMaxActiveClusters(&clusters_at_a_time[i], tile_gemm_kernel<Config, false>, &config);
    if (code != 0) return code;
  }
  return 0;
}

}  // namespace

bool tile_gemm_takes(const BlockGemm& g, const GemmWeight* weights, bool grouped) {
  const bool fp8 = is_fp8(g);
  if (fp8 != g.w_fp8 || g.accumulate || weights[0].maps == nullptr) return false;
  if (grouped && (!fp8 || g.a_is_batch || g.groups.num_groups > kMaxTileGroups ||
                  g.groups.num_groups * g.num_parts > kMaxTileWeights)) {
    return false;
  }
  if (g.num_batches > 1 && g.k % (fp8 ? 128 : 64) != 0) return false;
  if (fp8 && (pieces_of(g) > kMaxPieces || !can_map(scales_of_a(g, grouped)))) return false;
  return can_map(shape_of_a(g, grouped));
}

TileChoice choose_tiles(const BlockGemm& g, bool grouped) {
  TileChoice best;
  double least = 0;
  const bool tall = !is_fp8(g) && g.m > 128;
  for (const int columns : {192, 128, 112, 96, 64, 32}) {
    if (columns != 128 && (!is_fp8(g) || (grouped && (columns < 96 || columns == 112)))) continue;
    for (const int split : {1, 2, 4}) {
      const TileChoice c = {tall ? 256 : 128, columns, split};
      // A tile that is shared along k is a block's only one.
      if (split > 1 && (grouped || pieces_of(g) < 4 * split || count_tiles(g, grouped, c) > room_for(split))) continue;
      const double cost = cost_of(g, grouped, c);
      if (least > 0 && cost >= least) continue;
      least = cost;
      best = c;
    }
  }
  return best;
}

void tile_gemm(const BlockGemm& g, const GemmWeight* weights, bool grouped, const TileChoice& c, cudaStream_t stream) {
  if (!is_fp8(g)) {
    c.rows == 256 ? launch<TileConfig<false, 2, 128>, false>(g, weights, c, stream)
                  : launch<TileConfig<false, 1, 128>, false>(g, weights, c, stream);
  } else if (grouped) {
    launch_fp8<true>(g, weights, c, stream);
  } else {
    launch_fp8<false>(g, weights, c, stream);
  }
}

int prepare_tile_gemm() {
  for (const auto one : {prepare<TileConfig<true, 1, 192>, false>, prepare<TileConfig<true, 1, 128>, false>,
                         prepare<TileConfig<true, 1, 112>, false>, prepare<TileConfig<true, 1, 96>, false>,
                         prepare<TileConfig<true, 1, 64>, false>, prepare<TileConfig<true, 1, 32>, false>,
                         prepare<TileConfig<true, 1, 192>, true>, prepare<TileConfig<true, 1, 128>, true>,
                         prepare<TileConfig<true, 1, 96>, true>, prepare<TileConfig<false, 1, 128>, false>,
                         prepare<TileConfig<false, 2, 128>, false>}) {
    if (const int code = one(); code != 0) return code;
  }
  return count_clusters();
}

}  // namespace manta::backend::cuda
