// The kernel behind block_gemm.h. A block makes a kBM x kBN tile of C; its warps stand kWarpsM x kWarpsN.
//
// Both operands come through shared memory in pieces of 128 of k, kStages deep. The order of k inside a tensor core
// product is free as long as A and W agree, so each thread takes 16 neighbouring k (of 64) as its share: one 16-byte
// load of FP8, or two of bf16, feed four products, and no transposing load is needed. Chunks of 16 bytes are swizzled
// so that the eight lanes of a load phase (two rows) hit all banks.
#pragma once

#include "backend/cuda/common.cuh"
#include "backend/cuda/gemm/block_gemm.h"
#include "backend/cuda/gemm/group_rows.cuh"

namespace manta::backend::cuda {

constexpr int kBK = 128;

template <int kMaxWeights>
struct GemmLaunch {
  BlockGemm g;
  GemmWeight weights[kMaxWeights];
};

template <int kBM_, int kBN_, int kWarpsM_, int kWarpsN_, int kStages_, int kBlocks_>
struct GemmTile {
  static constexpr int kBlocks = kBlocks_;  // on one multiprocessor in FP8, to hide each other's waits
  static constexpr int kBM = kBM_, kBN = kBN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kMT = kBM / kWarpsM / 16, kNT = kBN / kWarpsN / 8;  // 16 x 8 tiles of a warp
};
using SmallTile = GemmTile<16, 64, 1, 4, 5, 3>;
using MediumTile = GemmTile<64, 64, 2, 2, 4, 3>;  // where large tiles are too few for the device
using LargeTile = GemmTile<64, 128, 2, 4, 3, 2>;

// The group and row tile that are number `tile` of all; false when there are fewer. Every warp finds out for itself.
template <int kBM>
__device__ bool find_group(const RowGroups& r, int tile, int& group, int& m_tile) {
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < r.num_groups; base += 32) {
    const int mine = base + lane < r.num_groups ? (group_rows(r, base + lane).num_rows + kBM - 1) / kBM : 0;
    int upto = mine;
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(~0u, upto, d);
      if (lane >= d) upto += below;
    }
    const unsigned reached = __ballot_sync(~0u, upto > tile);
    if (reached != 0) {
      const int at = __ffs(reached) - 1;
      group = base + at;
      m_tile = tile - (__shfl_sync(~0u, upto, at) - __shfl_sync(~0u, mine, at));
      return true;
    }
    tile -= __shfl_sync(~0u, upto, 31);
  }
  return false;
}

// A thread's share of an operand's tile: the same 16 bytes of k of a few rows, stage after stage. Rows that do not
// exist and what lies beyond k come as zeros.
template <int kRows, int kElemBytes, int kThreads>
struct TileLoader {
  static constexpr int kRowBytes = kBK * kElemBytes, kChunks = kRowBytes / 16;
  static constexpr int kRowStep = kThreads / kChunks, kShare = kRows / kRowStep;
  static_assert(kThreads % kChunks == 0 && kRows % kRowStep == 0 && kRowStep % 2 == 0);

  const uint8_t* from[kShare];  // null: zeros
  const uint8_t* any;           // some address of device memory
  int64_t row_bytes;
  int to, chunk;
  bool whole;  // else rows start at multiples of 8 bytes only

  template <typename RowPointer>
  __device__ __forceinline__ TileLoader(const void* any_address, int k, RowPointer&& row_pointer)
      : any(static_cast<const uint8_t*>(any_address)),
        row_bytes(int64_t{k} * kElemBytes),
        chunk(threadIdx.x % kChunks),
        whole(k * kElemBytes % 16 == 0) {
    const int row = threadIdx.x / kChunks;
    const int swizzled = kElemBytes == 2 ? chunk ^ (row & 1) : chunk ^ ((row & 1) * 4);
    to = row * kRowBytes + swizzled * 16;
#pragma unroll
    for (int i = 0; i < kShare; ++i) from[i] = static_cast<const uint8_t*>(row_pointer(row + i * kRowStep));
  }

  __device__ __forceinline__ void load(uint8_t* smem, int k_block) const {
    const int64_t offset = int64_t{k_block} * kRowBytes + chunk * 16, left = row_bytes - offset;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      uint8_t* at = smem + to + i * kRowStep * kRowBytes;
      const bool there = from[i] != nullptr && left > 0;
      const uint8_t* source = there ? from[i] + offset : any;
      if (whole) {
        copy_async_16(at, source, there ? 16 : 0);
      } else {
        copy_async_8(at, source, there ? 8 : 0);
        copy_async_8(at + 8, there && left > 8 ? source + 8 : any, there && left > 8 ? 8 : 0);
      }
    }
  }
};

// A thread's 16 values of k of one row, for four products: words (p0 p2)(p1 p3) of each four when kPaired, else
// (p0 p1)(p2 p3).
// FP8 on both sides stays FP8: two products of 32 k each from 16 bytes.
__device__ __forceinline__ uint4 load_fp8_fragment(const uint8_t* smem, int row, int half) {
  const int chunk = (half * 4 + threadIdx.x % 4) ^ ((row & 1) * 4);
  return *reinterpret_cast<const uint4*>(smem + row * kBK + chunk * 16);
}

__device__ __forceinline__ void mma_fp8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int kElemBytes, bool kPaired>
__device__ __forceinline__ void load_fragment(const uint8_t* smem, int row, int half, uint32_t (&out)[8]) {
  const int t = threadIdx.x % 4;
  if constexpr (kElemBytes == 1) {
    const int chunk = (half * 4 + t) ^ ((row & 1) * 4);
    const uint4 v = *reinterpret_cast<const uint4*>(smem + row * kBK + chunk * 16);
    e4m3x4_to_bf16(v.x, out[0], out[1]);
    e4m3x4_to_bf16(v.y, out[2], out[3]);
    e4m3x4_to_bf16(v.z, out[4], out[5]);
    e4m3x4_to_bf16(v.w, out[6], out[7]);
  } else {
    const uint8_t* base = smem + row * kBK * 2;
    const int chunk = half * 8 + 2 * t;
    const uint4 v = *reinterpret_cast<const uint4*>(base + (chunk ^ (row & 1)) * 16);
    const uint4 w = *reinterpret_cast<const uint4*>(base + ((chunk + 1) ^ (row & 1)) * 16);
    const uint32_t words[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      out[j] = kPaired ? __byte_perm(words[j], words[j + 1], 0x5410) : words[j];
      out[j + 1] = kPaired ? __byte_perm(words[j], words[j + 1], 0x7632) : words[j + 1];
    }
  }
}

__device__ __forceinline__ void store_pair(const BlockGemm& g, int64_t row, int64_t col, int limit, float x, float y) {
  const int64_t at = row * g.c_stride + col;
  if (g.c_f32) {
    float* c = static_cast<float*>(g.c) + at;
    if (limit > 0) c[0] = g.accumulate ? c[0] + x : x;
    if (limit > 1) c[1] = g.accumulate ? c[1] + y : y;
    return;
  }
  bf16* c = static_cast<bf16*>(g.c) + at;
  if (limit > 1 && at % 2 == 0) {
    *reinterpret_cast<__nv_bfloat162*>(c) = __floats2bfloat162_rn(x, y);
    return;
  }
  if (limit > 0) c[0] = __float2bfloat16_rn(x);
  if (limit > 1) c[1] = __float2bfloat16_rn(y);
}

template <typename Tile, bool kAFp8, bool kWFp8, bool kGrouped, int kMaxWeights>
__global__ void __launch_bounds__(Tile::kThreads, kAFp8 ? Tile::kBlocks : 1)
    block_gemm_kernel(const __grid_constant__ GemmLaunch<kMaxWeights> launch) {
  constexpr int kABytes = kAFp8 ? 1 : 2, kWBytes = kWFp8 ? 1 : 2;
  constexpr int kAStage = Tile::kBM * kBK * kABytes, kWStage = Tile::kBN * kBK * kWBytes;
  constexpr bool kScaled = kAFp8 || kWFp8;
  extern __shared__ __align__(128) uint8_t smem[];
  BlockGemm g = launch.g;
  const int n_tiles = (g.n + Tile::kBN - 1) / Tile::kBN;
  const int part = blockIdx.x / n_tiles, n0 = blockIdx.x % n_tiles * Tile::kBN;
  int group = 0, m_tile = blockIdx.y;
  int64_t a_first = 0, c_first = 0;
  int m = g.m;
  if constexpr (kGrouped) {
    if (!find_group<Tile::kBM>(g.groups, blockIdx.y, group, m_tile)) return;
    const GroupRows r = group_rows(g.groups, group);
    m = r.num_rows;
    a_first = g.a_is_batch ? r.batch_row : r.inner_row;
    c_first = g.c_is_batch ? r.batch_row : r.inner_row;
  }
  const int m0 = m_tile * Tile::kBM;
  const GemmWeight& weight = launch.weights[group * g.num_parts + part];
  const auto* a = static_cast<const uint8_t*>(g.a) + blockIdx.z * g.a_batch * kABytes;
  const auto* w = static_cast<const uint8_t*>(weight.data) + blockIdx.z * g.w_batch * kWBytes;
  const int num_k = (g.k + kBK - 1) / kBK;
  uint8_t* smem_a = smem;
  uint8_t* smem_w = smem + Tile::kStages * kAStage;

  const auto source_row = [&](int row) -> int64_t { return a_first + row; };
  const int64_t w_stride = (g.w_stride > 0 ? g.w_stride : g.k) * kWBytes;
  const TileLoader<Tile::kBM, kABytes, Tile::kThreads> load_a(g.a, g.k, [&](int row) -> const void* {
    return m0 + row < m ? a + source_row(m0 + row) * g.a_stride * kABytes : nullptr;
  });
  const TileLoader<Tile::kBN, kWBytes, Tile::kThreads> load_w(
      g.a, g.k, [&](int row) -> const void* { return n0 + row < g.n ? w + (n0 + row) * w_stride : nullptr; });
  const auto load = [&](int kb) {
    load_a.load(smem_a + kb % Tile::kStages * kAStage, kb);
    load_w.load(smem_w + kb % Tile::kStages * kWStage, kb);
  };
  for (int kb = 0; kb < Tile::kStages - 1; ++kb) {
    if (kb < num_k) load(kb);
    copy_async_commit();
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / Tile::kWarpsN * Tile::kMT * 16, warp_n = warp % Tile::kWarpsN * Tile::kNT * 8;
  float acc[Tile::kMT][Tile::kNT][4] = {};
  // Scales of a k block are asked for one block ahead: they come from far away.
  const float* scale_a[Tile::kMT][2];
  float next_a[Tile::kMT][2] = {}, next_w = 1.0f;
  const float* scale_w = kWFp8 ? weight.scale + n0 / kScaleBlock * num_k : nullptr;
  const auto fetch_scales = [&](int kb) {
    if (kb >= num_k) return;
    if constexpr (kWFp8) next_w = scale_w[kb];
    if constexpr (kAFp8) {
#pragma unroll
      for (int i = 0; i < Tile::kMT; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e)
          next_a[i][e] = scale_a[i][e] != nullptr ? scale_a[i][e][kb * g.a_scale_stride] : 0.0f;
      }
    }
  };
  if constexpr (kAFp8) {
#pragma unroll
    for (int i = 0; i < Tile::kMT; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = m0 + warp_m + i * 16 + lane / 4 + 8 * e;
        scale_a[i][e] = row < m ? g.a_scale + source_row(row) : nullptr;
      }
    }
  }
  if constexpr (kScaled) fetch_scales(0);
  for (int kb = 0; kb < num_k; ++kb) {
    copy_async_wait<Tile::kStages - 2>();
    __syncthreads();
    if (kb + Tile::kStages - 1 < num_k) load(kb + Tile::kStages - 1);
    copy_async_commit();
    const uint8_t* tile_a = smem_a + kb % Tile::kStages * kAStage;
    const uint8_t* tile_w = smem_w + kb % Tile::kStages * kWStage;
    float part_sum[Tile::kMT][Tile::kNT][4];
    float scale[Tile::kMT][2];
    if constexpr (kScaled) {
#pragma unroll
      for (int i = 0; i < Tile::kMT; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) scale[i][e] = kAFp8 ? next_w * next_a[i][e] : next_w;
      }
      fetch_scales(kb + 1);
#pragma unroll
      for (int i = 0; i < Tile::kMT; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kNT; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) part_sum[i][j][e] = 0.0f;
    }
    if constexpr (kAFp8) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint4 fa[Tile::kMT][2];
#pragma unroll
        for (int i = 0; i < Tile::kMT; ++i) {
          fa[i][0] = load_fp8_fragment(tile_a, warp_m + i * 16 + lane / 4, half);
          fa[i][1] = load_fp8_fragment(tile_a, warp_m + i * 16 + lane / 4 + 8, half);
        }
#pragma unroll
        for (int j = 0; j < Tile::kNT; ++j) {
          const uint4 fw = load_fp8_fragment(tile_w, warp_n + j * 8 + lane / 4, half);
#pragma unroll
          for (int i = 0; i < Tile::kMT; ++i) {
            mma_fp8(part_sum[i][j], fa[i][0].x, fa[i][1].x, fa[i][0].y, fa[i][1].y, fw.x, fw.y);
            mma_fp8(part_sum[i][j], fa[i][0].z, fa[i][1].z, fa[i][0].w, fa[i][1].w, fw.z, fw.w);
          }
        }
      }
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t fa[Tile::kMT][2][8];
#pragma unroll
        for (int i = 0; i < Tile::kMT; ++i) {
          const int row = warp_m + i * 16 + lane / 4;
          load_fragment<kABytes, kWFp8>(tile_a, row, half, fa[i][0]);
          load_fragment<kABytes, kWFp8>(tile_a, row + 8, half, fa[i][1]);
        }
#pragma unroll
        for (int j = 0; j < Tile::kNT; ++j) {
          uint32_t fw[8];
          load_fragment<kWBytes, false>(tile_w, warp_n + j * 8 + lane / 4, half, fw);
#pragma unroll
          for (int q = 0; q < 4; ++q) {
#pragma unroll
            for (int i = 0; i < Tile::kMT; ++i) {
              const uint32_t f[4] = {fa[i][0][2 * q], fa[i][1][2 * q], fa[i][0][2 * q + 1], fa[i][1][2 * q + 1]};
              mma_bf16(kScaled ? part_sum[i][j] : acc[i][j], f, fw[2 * q], fw[2 * q + 1]);
            }
          }
        }
      }
    }
    if constexpr (kScaled) {
#pragma unroll
      for (int i = 0; i < Tile::kMT; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kNT; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[i][j][e] += part_sum[i][j][e] * scale[i][e / 2];
        }
      }
    }
  }

  g.c = static_cast<uint8_t*>(g.c) + (blockIdx.z * g.c_batch + int64_t{part} * g.n) * (g.c_f32 ? 4 : 2);
#pragma unroll
  for (int i = 0; i < Tile::kMT; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = m0 + warp_m + i * 16 + lane / 4 + 8 * e;
      if (row >= m) continue;
#pragma unroll
      for (int j = 0; j < Tile::kNT; ++j) {
        const int col = n0 + warp_n + j * 8 + lane % 4 * 2;
        store_pair(g, c_first + row, col, g.n - col, acc[i][j][2 * e], acc[i][j][2 * e + 1]);
      }
    }
  }
}

template <typename Tile, bool kAFp8, bool kWFp8>
constexpr int gemm_smem_bytes() {
  return Tile::kStages * kBK * (Tile::kBM * (kAFp8 ? 1 : 2) + Tile::kBN * (kWFp8 ? 1 : 2));
}

template <typename Tile, bool kAFp8, bool kWFp8, bool kGrouped>
constexpr auto gemm_kernel() {
  return block_gemm_kernel < Tile, kAFp8, kWFp8, kGrouped, kGrouped ? kMaxGroupedWeights : 2 > ;
}

template <typename Tile, bool kAFp8, bool kWFp8, bool kGrouped>
int prepare_gemm_kernel() {
  return cudaFuncSetAttribute(gemm_kernel<Tile, kAFp8, kWFp8, kGrouped>(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              gemm_smem_bytes<Tile, kAFp8, kWFp8>());
}

template <bool kAFp8, bool kWFp8>
int prepare_gemm_kernels() {
  int code = prepare_gemm_kernel<SmallTile, kAFp8, kWFp8, false>();
  if (code == 0) code = prepare_gemm_kernel<MediumTile, kAFp8, kWFp8, false>();
  if (code == 0) code = prepare_gemm_kernel<LargeTile, kAFp8, kWFp8, false>();
  if (code == 0) code = prepare_gemm_kernel<SmallTile, kAFp8, kWFp8, true>();
  if (code == 0) code = prepare_gemm_kernel<LargeTile, kAFp8, kWFp8, true>();
  return code;
}

template <typename Tile, bool kAFp8, bool kWFp8, bool kGrouped>
void launch_gemm(const BlockGemm& g, const GemmWeight* weights, int num_weights, int m_tiles, cudaStream_t stream) {
  GemmLaunch<kGrouped ? kMaxGroupedWeights : 2> launch;
  launch.g = g;
  for (int i = 0; i < num_weights; ++i) launch.weights[i] = weights[i];
  const dim3 grid((g.n + Tile::kBN - 1) / Tile::kBN * g.num_parts, m_tiles, g.num_batches);
  gemm_kernel<Tile, kAFp8, kWFp8, kGrouped>()<<<grid, Tile::kThreads, gemm_smem_bytes<Tile, kAFp8, kWFp8>(), stream>>>(
      launch);
}

// Rows a group has on average decide the tile; all tiles give a row the same bits.
template <bool kAFp8, bool kWFp8>
void choose_gemm(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream) {
  if (!grouped) {
    if (g.m <= 16) return launch_gemm<SmallTile, kAFp8, kWFp8, false>(g, weights, g.num_parts, 1, stream);
    constexpr int kEnough = 200;  // blocks for 132 multiprocessors
    const int m_tiles = (g.m + 63) / 64;
    if (m_tiles * ((g.n + 127) / 128) * g.num_parts * g.num_batches < kEnough) {
      return launch_gemm<MediumTile, kAFp8, kWFp8, false>(g, weights, g.num_parts, m_tiles, stream);
    }
    return launch_gemm<LargeTile, kAFp8, kWFp8, false>(g, weights, g.num_parts, m_tiles, stream);
  }
  const RowGroups& r = g.groups;
  const int num_weights = r.num_groups * g.num_parts;
  const auto tiles = [&r](int bm) {
    return r.masked ? (r.window_rows + bm - 1) / bm * r.num_groups
                    : min(r.window_rows, (r.window_rows + bm - 1) / bm + r.num_groups);
  };
  const int rows_per_group = r.masked ? r.window_rows : r.window_rows / r.num_groups;
  if (rows_per_group <= 16) {
    return launch_gemm<SmallTile, kAFp8, kWFp8, true>(g, weights, num_weights, tiles(16), stream);
  }
  launch_gemm<LargeTile, kAFp8, kWFp8, true>(g, weights, num_weights, tiles(64), stream);
}

void gemm_bf16_bf16(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream);
void gemm_bf16_fp8(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream);
void gemm_fp8_fp8(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream);
int prepare_bf16_bf16();
int prepare_bf16_fp8();
int prepare_fp8_fp8();

}  // namespace manta::backend::cuda
