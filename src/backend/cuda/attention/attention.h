// Multi-head latent attention in the absorbed form: every query of a token is taken into the latent space, so one cache
// row [C + rope] serves as key and value of all heads.
// Letters: T rows, H heads, C kv_lora_rank, R qk_rope_head_dim, N qk_nope_head_dim.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace manta::backend::cuda {

// q [T, H, N + R] -> the last R values of each head, rotated, to queries [T, H, C + R].
struct RopeQueries {
  const __nv_bfloat16* q = nullptr;
  __nv_bfloat16* queries = nullptr;
  const int32_t* positions = nullptr;  // [T]; -1 counts as 0
  const float* cos = nullptr;          // [positions, R / 2]
  const float* sin = nullptr;
  int num_rows = 0, heads = 0, nope = 0, rope = 0, latent = 0;
};
void rope_queries(const RopeQueries& a, cudaStream_t stream);

// kv [T, C + R] f32 -> RMSNorm of the first C, rotation of the rest, into the cache row of each token.
struct WriteLatents {
  const float* kv = nullptr;
  int64_t kv_stride = 0;
  const float* gain = nullptr;            // [C]
  const int32_t* positions = nullptr;     // [T]
  const int64_t* slot_mapping = nullptr;  // [T], -1: not written
  const float* cos = nullptr;
  const float* sin = nullptr;
  __nv_bfloat16* cache = nullptr;  // [blocks * block_size, C + R]
  float eps = 0;
  int num_rows = 0, rope = 0, latent = 0;
};
void write_latents(const WriteLatents& a, cudaStream_t stream);

// out [T, H, C] = softmax(queries x cache^T * softmax_scale) x cache[:, :C]; row at position p sees [0, p]; rows
// without a position become 0. The positions of a row are cut into `num_splits` runs of whole tiles when there are too
// few rows to fill the device; the number depends on num_rows only, so a replayed step gives the bits of an eager one.
struct MlaAttention {
  const __nv_bfloat16* queries = nullptr;  // [T, H, C + R]
  const __nv_bfloat16* cache = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* row_req = nullptr;
  const int32_t* req_slot = nullptr;
  const int32_t* block_tables = nullptr;
  int64_t max_blocks = 0;
  int block_size = 0;
  float softmax_scale = 0;
  int num_rows = 0, heads = 0, rope = 0, latent = 0;
  int num_splits = 1;
  float* partial_out = nullptr;  // [T, splits, H, C]
  float* partial_lse = nullptr;  // [T, splits, H]
  __nv_bfloat16* out = nullptr;
};
void mla_attention(const MlaAttention& a, cudaStream_t stream);

int mla_num_splits(int num_rows, int heads, int num_multiprocessors);
constexpr int kMaxSplits = 32;
// Whether tensor cores do it; else plain loops, which take kv_lora_rank up to 512.
bool mla_has_tensor_cores(int latent, int rope);
int prepare_mla();

}  // namespace manta::backend::cuda
