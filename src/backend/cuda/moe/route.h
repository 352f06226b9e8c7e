// The router's choice of experts, as backend/host/routing.h defines it, and the one-rank dispatch and combine.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace manta::backend::cuda {

// logits -> physical ids and weights [T, top_k]; -1 and 0 on padding rows. `load` counts rows per physical
// expert.
struct ChooseExperts {
  const float* logits = nullptr;  // [num_partials, T, E]: added up first, in order
  int num_partials = 1;
  int64_t partial_stride = 0;
  const float* bias = nullptr;                   // [E] or null
  const int32_t* positions = nullptr;            // [T], -1: padding
  const int32_t* logical_to_physical = nullptr;  // [E, max_replicas] of this layer
  const int32_t* replica_count = nullptr;        // [E]
  int max_replicas = 1;
  int num_rows = 0, num_experts = 0, top_k = 0, n_group = 1, topk_group = 1;
  bool sigmoid = true, top2_sum = true, norm_topk_prob = true;
  float scaling = 1.0f;
  int32_t* ids = nullptr;
  float* weights = nullptr;
  int32_t* load = nullptr;  // [num_physical]
};
void choose_experts(const ChooseExperts& a, cudaStream_t stream);

// All experts on this rank: rows sorted by expert, an expert's rows in the order of their tokens, so the batch is the
// same every time. No count comes back to the host.
struct Dispatch {
  const int32_t* ids = nullptr;  // [T, top_k], -1: not sent
  int num_tokens = 0, top_k = 0, num_experts = 0;
  bool masked = false;
  int64_t plane = 0;           // masked: rows between two experts
  int32_t* counts = nullptr;   // [E]
  int32_t* offsets = nullptr;  // [E + 1]
  int32_t* row_of = nullptr;   // [T, top_k] row of the batch, -1
};
void assign_rows(const Dispatch& a, cudaStream_t stream);
// to [row_of] = from [token]; bf16 rows of d.
void dispatch_rows(const Dispatch& a, const __nv_bfloat16* from, int d, __nv_bfloat16* to, cudaStream_t stream);
// out [T, d] = sum over k in order of weights [T, top_k] x outputs [row_of], in float32.
void combine_rows(const Dispatch& a, const __nv_bfloat16* outputs, const float* weights, int d, float* out,
                  cudaStream_t stream);

}  // namespace manta::backend::cuda
