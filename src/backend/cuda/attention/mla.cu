// One block: 64 heads of one row over one run of cache tiles (64 positions), softmax carried along.
//
// Q stays in shared memory, tiles of the cache come in two stages deep; rows of 16-byte chunks are swizzled by row so
// that eight rows of one chunk hit all banks. Scores: warps stand 4 (heads) x 2 (positions). Sums: 2 (heads) x 4
// (columns of C), each warp holding 32 heads x C/4 in registers.
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/common.cuh"

namespace manta::backend::cuda {
namespace {

constexpr int kHeads = 64, kTile = 64, kThreads = 256;
constexpr float kLowest = -INFINITY;

__device__ __forceinline__ void load_matrix_4(uint32_t (&r)[4], const void* p) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(p));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void load_matrix_4_transposed(uint32_t (&r)[4], const void* p) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(p));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// Positions that the row sees in its split: whole tiles [first, end), the last one cut at num_seen.
struct Run {
  int first = 0, end = 0, num_seen = 0;
};
__device__ Run split_run(int position, int split, int num_splits) {
  Run run;
  run.num_seen = position + 1;
  const int tiles = (run.num_seen + kTile - 1) / kTile, per_split = (tiles + num_splits - 1) / num_splits;
  run.first = min(split * per_split, tiles);
  run.end = min(run.first + per_split, tiles);
  return run;
}

template <int C, int R>
struct MlaShared {
  static constexpr int kWidth = C + R, kChunks = kWidth / 8;
  bf16 q[kHeads * kWidth];
  bf16 kv[2][kTile * kWidth];
  bf16 p[kHeads * kTile];
  float max[2][kHeads];
  float sum[2][kHeads];
  float shrink[kHeads];
};

template <int kChunks>
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return (row * kChunks + (chunk ^ (row & 7 & (kChunks % 8 == 0 ? 7 : 3)))) * 8;
}

template <int C, int R>
__global__ void __launch_bounds__(kThreads, 1) mla_kernel(const __grid_constant__ MlaAttention a) {
  using Shared = MlaShared<C, R>;
  constexpr int kChunks = Shared::kChunks, kWidth = Shared::kWidth;
  static_assert(C % 128 == 0 && R % 32 == 0 && kChunks % 4 == 0);
  extern __shared__ __align__(128) uint8_t raw[];
  auto& s = *reinterpret_cast<Shared*>(raw);
  const int row = blockIdx.x, first_head = blockIdx.y * kHeads, split = blockIdx.z;
  const int num_heads = min(kHeads, a.heads - first_head);
  const int position = a.positions[row];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Run run = position < 0 ? Run{} : split_run(position, split, a.num_splits);

  const auto load_kv = [&](int tile, int stage) {
    const int32_t* table = a.block_tables + a.req_slot[a.row_req[row]] * a.max_blocks;
    for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
      const int r = i / kChunks, chunk = i % kChunks, p = tile * kTile + r;
      const bool seen = p < run.num_seen;
      const int64_t cache_row = seen ? int64_t{table[p / a.block_size]} * a.block_size + p % a.block_size : 0;
      copy_async_16(&s.kv[stage][swizzled<kChunks>(r, chunk)], a.cache + cache_row * kWidth + chunk * 8, seen ? 16 : 0);
    }
  };
  if (run.first < run.end) {
    const bf16* q = a.queries + (int64_t{row} * a.heads + first_head) * kWidth;
    for (int i = threadIdx.x; i < kHeads * kChunks; i += kThreads) {
      const int h = i / kChunks, chunk = i % kChunks;
      copy_async_16(&s.q[swizzled<kChunks>(h, chunk)], h < num_heads ? q + h * kWidth + chunk * 8 : q,
                    h < num_heads ? 16 : 0);
    }
    load_kv(run.first, 0);
  }
  copy_async_commit();

  const int score_m = warp / 2 * 16, score_n = warp % 2 * 32;    // of the 64 x 64 scores
  constexpr int kColumns = C / 4;                                // of a warp's sums
  const int sum_m = warp / 4 * 32, sum_n = warp % 4 * kColumns;  // of the 64 x C sums
  float sums[2][kColumns / 8][4] = {};
  float row_max[2] = {kLowest, kLowest}, row_sum[2] = {0.0f, 0.0f};  // of score rows g and g + 8; sums: own columns
  const float scale = a.softmax_scale * 1.4426950408889634f;

  for (int tile = run.first; tile < run.end; ++tile) {
    const int stage = (tile - run.first) % 2;
    if (tile + 1 < run.end) load_kv(tile + 1, 1 - stage);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const bf16* kv = s.kv[stage];

    float score[4][4] = {};
#pragma unroll 4
    for (int k = 0; k < kWidth / 16; ++k) {
      uint32_t fq[4];
      load_matrix_4(fq, &s.q[swizzled<kChunks>(score_m + lane % 16, 2 * k + lane / 16)]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t fk[4];  // positions n*16 .. +8: k low, k high; then the next eight
        load_matrix_4(fk, &kv[swizzled<kChunks>(score_n + n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2)]);
        mma_bf16(score[2 * n], fq, fk[0], fk[1]);
        mma_bf16(score[2 * n + 1], fq, fk[2], fk[3]);
      }
    }

    const int first_column = tile * kTile + score_n + lane % 4 * 2;
    float best[2] = {kLowest, kLowest};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[n][e] = first_column + n * 8 + e % 2 < run.num_seen ? score[n][e] * scale : kLowest;
        best[e / 2] = fmaxf(best[e / 2], score[n][e]);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      best[e] = fmaxf(best[e], __shfl_xor_sync(~0u, best[e], 1));
      best[e] = fmaxf(best[e], __shfl_xor_sync(~0u, best[e], 2));
      if (lane % 4 == 0) s.max[warp % 2][score_m + lane / 4 + 8 * e] = best[e];
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = score_m + lane / 4 + 8 * e;
      const float now = fmaxf(row_max[e], fmaxf(s.max[0][r], s.max[1][r]));  // position run.first * kTile is seen
      const float shrink = exp2f(row_max[e] - now);
      row_max[e] = now;
      row_sum[e] *= shrink;
      if (warp % 2 == 0 && lane % 4 == 0) s.shrink[r] = shrink;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int r = score_m + lane / 4 + 8 * e, c = score_n + n * 8 + lane % 4 * 2;
        const __nv_bfloat162 p =
            __floats2bfloat162_rn(exp2f(score[n][2 * e] - row_max[e]), exp2f(score[n][2 * e + 1] - row_max[e]));
        row_sum[e] += __low2float(p) + __high2float(p);
        *reinterpret_cast<__nv_bfloat162*>(&s.p[r * kTile + ((c / 8) ^ (r & 7)) * 8 + c % 8]) = p;
      }
    }
    __syncthreads();

#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float shrink[2] = {s.shrink[sum_m + m * 16 + lane / 4], s.shrink[sum_m + m * 16 + lane / 4 + 8]};
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][n][e] *= shrink[e / 2];
      }
    }
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      uint32_t fp[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int r = sum_m + m * 16 + lane % 16;
        load_matrix_4(fp[m], &s.p[r * kTile + ((2 * k + lane / 16) ^ (r & 7)) * 8]);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 16; ++n) {
        uint32_t fv[4];  // columns n*16 .. +8: positions low, high; then the next eight
        load_matrix_4_transposed(fv, &kv[swizzled<kChunks>(k * 16 + lane % 16, sum_n / 8 + 2 * n + lane / 16)]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(sums[m][2 * n], fp[m], fv[0], fv[1]);
          mma_bf16(sums[m][2 * n + 1], fp[m], fv[2], fv[3]);
        }
      }
    }
    __syncthreads();
  }

  // Row sums of the two warps that share score rows, then the results.
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    row_sum[e] += __shfl_xor_sync(~0u, row_sum[e], 1);
    row_sum[e] += __shfl_xor_sync(~0u, row_sum[e], 2);
    const int r = score_m + lane / 4 + 8 * e;
    if (lane % 4 == 0) s.sum[warp % 2][r] = row_sum[e];
    if (lane % 4 == 0 && warp % 2 == 0) s.max[0][r] = row_max[e];
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int h = sum_m + m * 16 + lane / 4 + 8 * e;
      if (h >= num_heads) continue;
      const float total = s.sum[0][h] + s.sum[1][h];
      const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
      const int64_t head = first_head + h;
      const int64_t at = a.num_splits == 1 ? (int64_t{row} * a.heads + head) * C
                                           : ((int64_t{row} * a.num_splits + split) * a.heads + head) * C;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const int c = sum_n + n * 8 + lane % 4 * 2;
        const float x = sums[m][n][2 * e] * inverse, y = sums[m][n][2 * e + 1] * inverse;
        if (a.num_splits == 1) {
          *reinterpret_cast<__nv_bfloat162*>(a.out + at + c) = __floats2bfloat162_rn(x, y);
        } else {
          *reinterpret_cast<float2*>(a.partial_out + at + c) = make_float2(x, y);
        }
      }
      if (a.num_splits > 1 && warp % 4 == 0 && lane % 4 == 0) {
        a.partial_lse[(int64_t{row} * a.num_splits + split) * a.heads + head] =
            total > 0.0f ? s.max[0][h] + log2f(total) : kLowest;
      }
    }
  }
}

// out [T, H, C]: the splits' results by their log-sum-exp (base 2).
__global__ void combine_kernel(const __grid_constant__ MlaAttention a) {
  const int64_t row = blockIdx.x, head = blockIdx.y;
  float max = kLowest;
  const auto lse = [&](int split) { return a.partial_lse[(row * a.num_splits + split) * a.heads + head]; };
  for (int i = 0; i < a.num_splits; ++i) max = fmaxf(max, lse(i));
  float total = 0.0f;
  for (int i = 0; i < a.num_splits; ++i) total += max > kLowest ? exp2f(lse(i) - max) : 0.0f;
  for (int c = threadIdx.x; c < a.latent; c += blockDim.x) {
    float sum = 0.0f;
    for (int i = 0; i < a.num_splits; ++i) {
      const float weight = max > kLowest ? exp2f(lse(i) - max) : 0.0f;
      if (weight > 0.0f) sum += weight * a.partial_out[((row * a.num_splits + i) * a.heads + head) * a.latent + c];
    }
    a.out[(row * a.heads + head) * a.latent + c] = __float2bfloat16_rn(total > 0.0f ? sum / total : 0.0f);
  }
}

// Any dimensions, one head a block: for models that are not DeepSeek's size.
constexpr int kPlainThreads = 128, kMaxPlainLatent = 512;

__global__ void __launch_bounds__(kPlainThreads) mla_plain_kernel(const __grid_constant__ MlaAttention a) {
  extern __shared__ float shared[];  // q [C + R], weights [kPlainThreads], scratch [34]
  const int width = a.latent + a.rope, row = blockIdx.x, head = blockIdx.y;
  float *q = shared, *weights = q + width, *scratch = weights + kPlainThreads;
  const int position = a.positions[row];
  bf16* out = a.out + (int64_t{row} * a.heads + head) * a.latent;
  float sums[kMaxPlainLatent / kPlainThreads] = {};
  float max = kLowest, total = 0.0f;
  if (position >= 0) {
    const bf16* from = a.queries + (int64_t{row} * a.heads + head) * width;
    for (int c = threadIdx.x; c < width; c += kPlainThreads) q[c] = __bfloat162float(from[c]);
    const int32_t* table = a.block_tables + a.req_slot[a.row_req[row]] * a.max_blocks;
    const auto cache_row = [&](int p) {
      return a.cache + (int64_t{table[p / a.block_size]} * a.block_size + p % a.block_size) * width;
    };
    for (int first = 0; first <= position; first += kPlainThreads) {
      __syncthreads();
      const int count = min(kPlainThreads, position + 1 - first);
      float score = kLowest;
      if (threadIdx.x < count) {
        const bf16* k = cache_row(first + threadIdx.x);
        score = 0.0f;
        for (int c = 0; c < width; ++c) score += q[c] * __bfloat162float(k[c]);
        score *= a.softmax_scale;
      }
      const float warp_best = warp_max(score);
      if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = warp_best;
      __syncthreads();
      float now = max;
      for (int w = 0; w < kPlainThreads / 32; ++w) now = fmaxf(now, scratch[w]);
      const float shrink = expf(max - now), weight = threadIdx.x < count ? expf(score - now) : 0.0f;
      max = now;
      weights[threadIdx.x] = weight;
      __syncthreads();
      total = total * shrink + block_sum(weight, scratch);
      for (int j = 0; j < kMaxPlainLatent / kPlainThreads; ++j) {
        const int c = threadIdx.x + j * kPlainThreads;
        if (c >= a.latent) break;
        sums[j] *= shrink;
        for (int i = 0; i < count; ++i) sums[j] += weights[i] * __bfloat162float(cache_row(first + i)[c]);
      }
    }
  }
  for (int j = 0; j < kMaxPlainLatent / kPlainThreads; ++j) {
    const int c = threadIdx.x + j * kPlainThreads;
    if (c < a.latent) out[c] = __float2bfloat16_rn(total > 0.0f ? sums[j] / total : 0.0f);
  }
}

template <int C, int R>
void launch_mla(const MlaAttention& a, cudaStream_t stream) {
  const dim3 grid(a.num_rows, (a.heads + kHeads - 1) / kHeads, a.num_splits);
  mla_kernel<C, R><<<grid, kThreads, sizeof(MlaShared<C, R>), stream>>>(a);
  if (a.num_splits > 1) combine_kernel<<<dim3(a.num_rows, a.heads), 128, 0, stream>>>(a);
}

template <int C, int R>
int prepare() {
  static_assert(sizeof(MlaShared<C, R>) <= 232448);
  return cudaFuncSetAttribute(mla_kernel<C, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(MlaShared<C, R>));
}

}  // namespace

bool mla_has_tensor_cores(int latent, int rope) {
  return (latent == 512 && rope == 64) || (latent == 128 && rope == 32);
}

int mla_num_splits(int num_rows, int heads, int num_multiprocessors) {
  const int blocks = num_rows * ((heads + kHeads - 1) / kHeads);
  if (blocks == 0 || 2 * blocks > num_multiprocessors) return 1;
  return min(num_multiprocessors / blocks, kMaxSplits);
}

int prepare_mla() {
  const int code = prepare<512, 64>();
  return code != 0 ? code : prepare<128, 32>();
}

void mla_attention(const MlaAttention& a, cudaStream_t stream) {
  if (a.num_rows == 0) return;
  if (a.latent == 512 && a.rope == 64) return launch_mla<512, 64>(a, stream);
  if (a.latent == 128 && a.rope == 32) return launch_mla<128, 32>(a, stream);
  const size_t bytes = (a.latent + a.rope + kPlainThreads + 34) * sizeof(float);
  mla_plain_kernel<<<dim3(a.num_rows, a.heads), kPlainThreads, bytes, stream>>>(a);
}

}  // namespace manta::backend::cuda
