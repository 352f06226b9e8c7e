// Causal attention of prefill rows over expanded keys and values on wgmma.
//
// A block takes 128 queries of one head over tiles of 128 keys: two warpgroups of 64 queries each, and one warp that
// fetches. The warpgroups ask for products in turns: one tile's values and the next tile's scores, 1280 cycles of the
// tensor cores, in which the other makes its weights, about 800. Blocks stay and take the next item from a counter,
// longest first within a head; the heads that run at a time share their keys in L2.
#include "backend/cuda/attention/prefill.h"
#include "backend/cuda/attention/rows.cuh"
#include "backend/cuda/common.cuh"
#include "backend/cuda/hopper.cuh"
#include "backend/cuda/tensor_map.h"

namespace manta::backend::cuda {
namespace {

constexpr int kNope = 128, kRope = 64, kValue = 128, kLatent = 512;
constexpr int kTile = kPrefillTile, kStages = 2, kThreads = 384, kWarpgroups = 2, kWarpgroupRows = 64;
constexpr int kPieceBytes = kTile * 128, kQueryBytes = kWarpgroupRows * 128;  // 64 columns
constexpr float kLowest = -INFINITY;

struct Work {
  PrefillItem item;
  int head = 0;
};

struct PrefillShared {
  uint8_t q[kWarpgroups][3][kQueryBytes];
  uint8_t k[kStages][3][kPieceBytes];
  uint8_t v[kStages][2][kPieceBytes];
  Work work[kWarpgroups];
  uint64_t q_full[kWarpgroups], q_empty[kWarpgroups];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};
constexpr int kSharedBytes = sizeof(PrefillShared) + 1024;
static_assert(kSharedBytes <= 232448);

struct PrefillLaunch {
  PrefillPassLaunch p;
  CUtensorMap q_map, key_map, rope_map, value_map;
};

// ---- copies ------------------------------------------------------------------------------------------------------

struct Ring {
  int stage = 0, parity = 0;
  __device__ void next() {
    stage ^= 1;
    parity ^= stage == 0;
  }
};

struct Fetch {
  const PrefillLaunch& launch;
  PrefillShared& s;
  Ring keys, values;

  __device__ void load_keys(const Work& work, int tile) {
    const int row = work.item.kv_row + tile * kTile;
    uint64_t* full = &s.k_full[keys.stage];
    barrier_wait(&s.k_empty[keys.stage], keys.parity ^ 1);
    barrier_arrive_expect(full, 3 * kPieceBytes);
    for (int c = 0; c < 2; ++c) {
      tensor_load(s.k[keys.stage][c], &launch.key_map, full, c * 64, work.head * launch.p.num_rows + row);
    }
    tensor_load(s.k[keys.stage][2], &launch.rope_map, full, kLatent, row);
    keys.next();
  }
  __device__ void load_values(const Work& work, int tile) {
    const int row = work.head * launch.p.num_rows + work.item.kv_row + tile * kTile;
    uint64_t* full = &s.v_full[values.stage];
    barrier_wait(&s.v_empty[values.stage], values.parity ^ 1);
    barrier_arrive_expect(full, 2 * kPieceBytes);
    for (int c = 0; c < 2; ++c) tensor_load(s.v[values.stage][c], &launch.value_map, full, c * 64, row);
    values.next();
  }
  // The work and its queries, or that there is none.
  __device__ void hand_out(const Work& work, int parity) {
    const bool done = work.item.num_rows == 0;
#pragma unroll 1
    for (int w = 0; w < kWarpgroups; ++w) {
      barrier_wait(&s.q_empty[w], parity ^ 1);
      s.work[w] = work;
      if (done) {
        barrier_arrive(&s.q_full[w]);
        continue;
      }
      barrier_arrive_expect(&s.q_full[w], 3 * kQueryBytes);
      for (int c = 0; c < 3; ++c) {
        tensor_load(s.q[w][c], &launch.q_map, &s.q_full[w], work.head * (kNope + kRope) + c * 64,
                    work.item.q_row + w * kWarpgroupRows);
      }
    }
  }
};

__device__ Work work_of(const PrefillPassLaunch& p, int index) {
  Work work;
  if (index >= p.num_items * p.heads) return work;
  work.item = p.items[index % p.num_items];
  work.head = index / p.num_items;
  return work;
}

// One thread.
__device__ void fetch(const PrefillLaunch& launch, PrefillShared& s) {
  Fetch f{launch, s, {}, {}};
  int next = atomicAdd(launch.p.next_item, 1);
  for (int parity = 0;; parity ^= 1) {
    const Work work = work_of(launch.p, next);
    if (work.item.num_rows == 0) return f.hand_out(work, parity);
    next = atomicAdd(launch.p.next_item, 1);
    f.load_keys(work, 0);
    f.hand_out(work, parity);
#pragma unroll 1
    for (int tile = 1; tile < work.item.num_tiles; ++tile) {
      f.load_keys(work, tile);
      f.load_values(work, tile - 1);
    }
    f.load_values(work, work.item.num_tiles - 1);
  }
}

// ---- a warpgroup --------------------------------------------------------------------------------------------------

// What a thread carries along of two rows: 64 columns' sums, the maximum that weights are relative to, and the sum of
// its own weights.
struct Sums {
  float out[64];
  float max[2], total[2];
};

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Descriptors' low halves, found before a turn begins: k_major_low and its like cost a shuffle each.
__device__ __forceinline__ uint32_t values_low(const void* values) {
  return __shfl_sync(~0u, static_cast<uint32_t>(rows_are_k(values, kPieceBytes)), 0);
}
struct ScoreOperands {
  uint32_t q[3], k[3];
  __device__ __forceinline__ ScoreOperands(PrefillShared& s, int w, int stage) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      q[c] = k_major_low(s.q[w][c]);
      k[c] = k_major_low(s.k[stage][c]);
    }
  }
};

__device__ __forceinline__ void start_scores(const ScoreOperands& of, float (&score)[64]) {
  wgmma_hold(score);
  wgmma_begin();
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const uint64_t q = k_major_of(of.q[c]), k = k_major_of(of.k[c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma_bf16(score, advanced(q, i * 32), advanced(k, i * 32), c + i > 0);
  }
  wgmma_commit();
}

__device__ __forceinline__ void start_values(uint32_t values, Sums& sums, uint32_t (&weights)[32]) {
  wgmma_hold(sums.out);
  wgmma_hold(weights);
  wgmma_begin();
  const uint64_t v = (rows_are_k(nullptr, kPieceBytes) & 0xffffffff00000000) | values;
#pragma unroll
  for (int k = 0; k < kTile / 16; ++k) {
    const uint32_t p[4] = {weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3]};
    wgmma_bf16_rows(sums.out, p, advanced(v, k * 16 * 128), true);
  }
  wgmma_commit();
}

// `seen` of the tile's keys by this thread's first row; the other one, 8 below, sees 8 more, up to `there`.
__device__ __forceinline__ void mask(float (&score)[64], int seen, int there) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (column >= min(there, seen + i / 2 % 2 * 8)) score[i] = kLowest;
  }
}

// The maximum moves only when it grows by more than 2^8; then earlier sums shrink.
__device__ __forceinline__ void move_max(Sums& sums, const float (&score)[64], float scale, float (&offset)[2]) {
  float best[2] = {kLowest, kLowest}, shrink[2];
#pragma unroll
  for (int i = 0; i < 64; ++i) best[i / 2 % 2] = fmaxf(best[i / 2 % 2], score[i]);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    best[e] = row_max(best[e]);
    const float now = (best[e] - sums.max[e]) * scale > 8.0f ? best[e] : sums.max[e];
    offset[e] = now == kLowest ? 0.0f : now * scale;  // nothing seen yet
    shrink[e] = now == sums.max[e] ? 1.0f : exp2_of(sums.max[e] * scale - offset[e]);
    sums.max[e] = now;
    sums.total[e] *= shrink[e];
  }
  shrink_rows(sums.out, shrink);
}

// Scores -> weights as products take them from registers: k runs over the columns, 16 at a time.
__device__ __forceinline__ void make_weights(Sums& sums, const float (&score)[64], float scale,
                                             uint32_t (&weights)[32]) {
  float offset[2];
  move_max(sums, score, scale, offset);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int e = i % 2;
    const float a = exp2_of(fmaf(score[2 * i], scale, -offset[e]));
    const float b = exp2_of(fmaf(score[2 * i + 1], scale, -offset[e]));
    sums.total[e] += a + b;
    const __nv_bfloat162 p = __floats2bfloat162_rn(a, b);
    weights[i] = reinterpret_cast<const uint32_t&>(p);
  }
}

// Named barriers, one for each warpgroup.
constexpr int kProductsDone = 1, kFirstTurn = 3;

struct Consumer {
  const PrefillPassLaunch& p;
  PrefillShared& s;
  const int w;  // warpgroup
  Ring keys, values;

  __device__ __forceinline__ int first_row() const {  // of the item; the other is 8 below
    return w * kWarpgroupRows + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  }

  // The warpgroups' products in turns, the first warpgroup's first: as many turns an item as it has tiles and one.
  __device__ __forceinline__ void begin_turn() { named_barrier(kFirstTurn + w, kWarpgroups * 128); }
  __device__ __forceinline__ void end_turn() { named_barrier_arrive(kFirstTurn + 1 - w, kWarpgroups * 128); }

  __device__ __forceinline__ void mask_tile(const PrefillItem& item, int tile, float (&score)[64]) {
    const int there = item.kv_rows - tile * kTile, first_seen = item.first_seen - tile * kTile;
    if (min(there, first_seen + w * kWarpgroupRows) >= kTile) return;
    mask(score, first_seen + first_row(), there);
  }

  __device__ __forceinline__ void attend(const PrefillItem& item, Sums& sums) {
    const float scale = p.softmax_scale * 1.4426950408889634f;
    float score[64];
    uint32_t weights[32];
#pragma unroll
    for (int i = 0; i < 64; ++i) sums.out[i] = 0.0f;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      sums.max[e] = kLowest;
      sums.total[e] = 0.0f;
    }
    barrier_wait(&s.k_full[keys.stage], keys.parity);
    const ScoreOperands first(s, w, keys.stage);
    begin_turn();
    start_scores(first, score);
    end_turn();
    wgmma_wait<0>();
    wgmma_hold(score);
    release(&s.k_empty[keys.stage]);
    keys.next();
    mask_tile(item, 0, score);
    make_weights(sums, score, scale, weights);
    for (int tile = 1; tile < item.num_tiles; ++tile) {
      barrier_wait(&s.k_full[keys.stage], keys.parity);
      barrier_wait(&s.v_full[values.stage], values.parity);
      const ScoreOperands operands(s, w, keys.stage);
      const uint32_t v = values_low(s.v[values.stage][0]);
      begin_turn();
      start_values(v, sums, weights);
      start_scores(operands, score);
      end_turn();
      wgmma_wait<0>();
      wgmma_hold(score);
      wgmma_hold(sums.out);
      release(&s.v_empty[values.stage]);
      release(&s.k_empty[keys.stage]);
      values.next();
      keys.next();
      mask_tile(item, tile, score);
      make_weights(sums, score, scale, weights);
    }
    barrier_wait(&s.v_full[values.stage], values.parity);
    const uint32_t last = values_low(s.v[values.stage][0]);
    begin_turn();
    start_values(last, sums, weights);
    end_turn();
    wgmma_wait<0>();
    wgmma_hold(sums.out);
    release(&s.v_empty[values.stage]);
    values.next();
  }

  // Sums -> results of this part of the context, and with what earlier parts left. Then their log-sum-exp, where later
  // parts need it.
  __device__ __forceinline__ void finish(const Work& work, Sums& sums) {
    const int lane = threadIdx.x % 32;
    const float scale = p.softmax_scale * 1.4426950408889634f;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      sums.total[e] += __shfl_xor_sync(~0u, sums.total[e], 1);
      sums.total[e] += __shfl_xor_sync(~0u, sums.total[e], 2);
      const float inverse = sums.total[e] > 0.0f ? 1.0f / sums.total[e] : 0.0f;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        sums.out[4 * i + 2 * e] *= inverse;
        sums.out[4 * i + 2 * e + 1] *= inverse;
      }
      if (!work.item.has_earlier && !work.item.has_later) continue;
      const int row = first_row() + 8 * e;
      if (row >= work.item.num_rows) continue;
      const int64_t at = int64_t{work.item.q_row + row} * p.heads + work.head;
      float lse = sums.total[e] > 0.0f ? sums.max[e] * scale + log2f(sums.total[e]) : kLowest;
      if (work.item.has_earlier) {
        const float earlier = p.lse[at], most = fmaxf(lse, earlier);  // every row has seen something earlier
        const float a = exp2_of(earlier - most), b = exp2_of(lse - most), both = 1.0f / (a + b);
        const auto* out = reinterpret_cast<const __nv_bfloat162*>(p.out + at * kValue) + lane % 4;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          const float2 old = __bfloat1622float2(out[i * 4]);
          sums.out[4 * i + 2 * e] = (old.x * a + sums.out[4 * i + 2 * e] * b) * both;
          sums.out[4 * i + 2 * e + 1] = (old.y * a + sums.out[4 * i + 2 * e + 1] * b) * both;
        }
        lse = most + log2f(a + b);
        __syncwarp(0xfu << (lane & ~3));  // a row's four threads have read its log-sum-exp
      }
      if (work.item.has_later && lane % 4 == 0) p.lse[at] = lse;
    }
  }

  // Through shared memory, where the queries were, so that a row goes out as 256 bytes.
  __device__ __forceinline__ void store(const Work& work, const Sums& sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    named_barrier(kProductsDone + w, 128);  // nobody's products read queries any more
    uint8_t* to = &s.q[w][0][0] + warp * 16 * 256;
    put_rows(to, sums.out);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = i * 2 + lane / 16, row = w * kWarpgroupRows + warp * 16 + r;
      const uint4 v = load_chunk(to, r, lane % 16);
      if (row < work.item.num_rows) {
        const int64_t at = int64_t{work.item.q_row + row} * p.heads + work.head;
        *reinterpret_cast<uint4*>(p.out + at * kValue + lane % 16 * 8) = v;
      }
    }
    fence_to_async();
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.q_empty[w]);
  }

  __device__ void run() {
    if (w == 1) end_turn();
    for (int parity = 0;; parity ^= 1) {
      barrier_wait(&s.q_full[w], parity);
      const Work work = s.work[w];
      if (work.item.num_rows == 0) return;
      Sums sums;
      attend(work.item, sums);
      finish(work, sums);
      store(work, sums);
    }
  }
};

__global__ void __launch_bounds__(kThreads, 1) prefill_kernel(const __grid_constant__ PrefillLaunch launch) {
  extern __shared__ uint8_t raw[];
  auto& s = *reinterpret_cast<PrefillShared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(&s.q_full[i], 1);
      barrier_init(&s.q_empty[i], 4);
      barrier_init(&s.k_full[i], 1);
      barrier_init(&s.k_empty[i], kWarpgroups);
      barrier_init(&s.v_full[i], 1);
      barrier_init(&s.v_empty[i], kWarpgroups);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= kWarpgroups * 128) {
    registers_give<40>();
    if (threadIdx.x == kWarpgroups * 128) fetch(launch, s);
  } else {
    registers_take<232>();
    Consumer{launch.p, s, static_cast<int>(threadIdx.x) / 128, {}, {}}.run();
  }
}

int num_multiprocessors = 0;

}  // namespace

bool prefill_takes(int nope, int rope, int v, int latent) {
  return nope == kNope && rope == kRope && v == kValue && latent == kLatent;
}

int prepare_prefill() {
  cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  const int code = cudaFuncSetAttribute(prefill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  return code != 0 ? code : prepare_expand();
}

void attend_expanded(const PrefillPassLaunch& p, cudaStream_t stream) {
  if (p.num_items == 0) return;
  PrefillLaunch launch;
  launch.p = p;
  launch.q_map = encode_map({.data = p.q,
                             .columns = int64_t{p.heads} * (kNope + kRope),
                             .rows = p.num_q_rows,
                             .row_stride = int64_t{p.heads} * (kNope + kRope),
                             .box_rows = kWarpgroupRows});
  MapShape expanded = {
      .data = p.keys, .columns = kNope, .rows = int64_t{p.heads} * p.num_rows, .row_stride = kNope, .box_rows = kTile};
  launch.key_map = encode_map(expanded);
  expanded.data = p.values;
  launch.value_map = encode_map(expanded);
  launch.rope_map = encode_map({.data = p.latents,
                                .columns = kLatent + kRope,
                                .rows = p.num_rows,
                                .row_stride = kLatent + kRope,
                                .box_rows = kTile});
  const int blocks = min(num_multiprocessors, p.num_items * p.heads);
  prefill_kernel<<<blocks, kThreads, kSharedBytes, stream>>>(launch);
}

}  // namespace manta::backend::cuda
