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

// The work of mla_attention in items of about equal length, planned on the device once a step: a row's tiles of
// positions, whole or, where whole rows would leave multiprocessors idle, in up to 32 pieces. Depends on the positions
// of all rows, so a replayed step has the plan of an eager one padded alike.
constexpr int kMlaTile = 64, kMaxMlaPieces = 32;
struct MlaPlan {
  const int32_t* positions = nullptr;    // [T]; row at position p sees [0, p], -1 nothing
  const int32_t* row_req = nullptr;      // [T]
  const int32_t* is_expanded = nullptr;  // by request: its rows are prefill.h's and get no item; null: none are
  int num_rows = 0;
  int num_planned = 0;      // rows that get items
  int num_slots = 0;        // items that run at a time
  int max_extra_items = 0;  // beyond one a row
  int4* items =
      nullptr;  // [T + extra] row (-1: none), first tile, end, number of the partial result (-1: the only one)
  int2* row_pieces = nullptr;  // [T] first partial result, how many
};
void plan_mla(const MlaPlan& p, cudaStream_t stream);

// out [T, H, C] = softmax(queries x cache^T * softmax_scale) x cache[:, :C]; row at position p sees [0, p]; rows
// without a position become 0.
struct MlaAttention {
  const __nv_bfloat16* queries = nullptr;  // [T, H, C + R]
  const __nv_bfloat16* cache = nullptr;    // [cache_rows, C + R]
  int64_t cache_rows = 0;
  const int32_t* positions = nullptr;
  const int32_t* row_req = nullptr;
  const int32_t* req_slot = nullptr;
  const int32_t* block_tables = nullptr;
  int64_t max_blocks = 0;
  int block_size = 0;
  float softmax_scale = 0;
  int num_rows = 0, heads = 0, rope = 0, latent = 0;
  int num_planned = 0;          // rows that have items
  const int4* items = nullptr;  // of the step's plan; null: plain loops, for dimensions that mla_takes refuses
  const int2* row_pieces = nullptr;
  int max_extra_items = 0;
  float* partial_out = nullptr;  // [2 * extra, H, C]: a row in pieces has at least one extra item
  float* partial_lse = nullptr;  // [2 * extra, H]
  __nv_bfloat16* out = nullptr;
};
void mla_attention(const MlaAttention& a, cudaStream_t stream);
void mla_plain(const MlaAttention& a, cudaStream_t stream);

// Whether tensor cores do it; the plain loops take kv_lora_rank up to 512.
bool mla_takes(int latent, int rope, int block_size);
// Thread blocks, one to a multiprocessor, that work on an item together.
int mla_blocks_per_item(int heads);
int prepare_mla();

}  // namespace manta::backend::cuda
