// Attention of prefill rows over expanded keys and values: latents of the cache are taken up to every head's own keys
// and values (kv_b), so that a pair of query and key costs 192 + 128 products in place of the absorbed form's 576 +
// 512. What to attend so, and in which passes, is prefill_plan.h's. Letters: T rows, H heads, R rows of expanded keys
// of a pass. Dimensions are DeepSeek-V3's: 128 values of a key and 64 rotated ones, values of 128, latents of 512.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/attention/prefill_plan.h"

namespace manta::backend::cuda {

// A pass, in the order of the three calls below.
struct PrefillPassLaunch {
  // gather
  const __nv_bfloat16* cache = nullptr;   // [cache_rows, 512 + 64]
  const int32_t* block_tables = nullptr;  // [slots, max_blocks]
  int64_t max_blocks = 0;
  int block_size = 0;
  const KvSegment* segments = nullptr;
  int num_segments = 0;
  int num_rows = 0;  // R, a multiple of kPrefillTile
  // expand
  const __nv_bfloat16* key_up = nullptr;    // [H, 512, 128]
  const __nv_bfloat16* value_up = nullptr;  // [H, 128, 512]
  int heads = 0;
  // attend
  const __nv_bfloat16* q = nullptr;  // [T, H, 128 + 64], rotated
  int num_q_rows = 0;                // T
  const PrefillItem* items = nullptr;
  int num_items = 0;
  float softmax_scale = 0;
  __nv_bfloat16* out = nullptr;  // [T, H, 128]: rows of the items
  // Between them.
  __nv_bfloat16* latents = nullptr;  // [R, 512 + 64]
  __nv_bfloat16* keys = nullptr;     // [H, R, 128]
  __nv_bfloat16* values = nullptr;   // [H, R, 128]
  float* lse = nullptr;              // [T, H], base 2: of rows whose context goes on in another pass
  int32_t* next_item = nullptr;      // 1
};

// Cache rows of the segments side by side; what a segment lacks to whole tiles is zero.
void gather_latents(const PrefillPassLaunch& p, cudaStream_t stream);
// latents x W_UK^T and x W_UV^T, every head.
void expand_latents(const PrefillPassLaunch& p, cudaStream_t stream);
// softmax(q x [keys; rotated latents]^T) x values, with what earlier passes left in out and lse.
void attend_expanded(const PrefillPassLaunch& p, cudaStream_t stream);

// Whether the kernels are for these dimensions.
bool prefill_takes(int nope, int rope, int v, int latent);
// Once, before the first launch. Returns a CUDA error code.
int prepare_prefill();
int prepare_expand();

}  // namespace manta::backend::cuda
