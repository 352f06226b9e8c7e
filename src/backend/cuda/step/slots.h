// What the device remembers of the requests that hold a slot, and the kernels that change it outside sampling: a step's
// upload, and the inputs of its rows. The host never reads any of this.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace manta::backend::cuda {

// sample::SamplingParams as kernels read them.
struct SlotSampling {
  float temperature = 1.0f, top_p = 1.0f, log_min_p = 0.0f;
  float presence_penalty = 0.0f, frequency_penalty = 0.0f, repetition_penalty = 1.0f;
  int32_t top_k = 0, min_tokens = 0, num_logprobs = -1;
  int32_t has_min_p = 0, has_allowed = 0;  // has_allowed: only the tokens of the slot's row of `allowed`
  uint64_t seed = 0;
  // num_biases x (id, float bits), then num_end_tokens ids, then num_bad_words x (length, ids).
  const int32_t* lists = nullptr;
  int32_t num_biases = 0, num_end_tokens = 0, num_bad_words = 0, pad = 0;
};

// Device arrays by slot.
struct SlotArrays {
  int32_t* tokens = nullptr;  // [max_num_seqs, token_stride]
  int64_t token_stride = 0;
  int32_t* length = nullptr;
  int32_t* num_prompt_tokens = nullptr;
  int32_t* drafts = nullptr;  // [max_num_seqs, max_drafts]
  int32_t* num_drafts = nullptr;
  int32_t max_drafts = 0;
  int32_t* num_blocks = nullptr;
  int32_t* block_tables = nullptr;  // [max_num_seqs, max_blocks]
  int64_t max_blocks = 0;
  SlotSampling* sampling = nullptr;
  uint32_t* allowed = nullptr;  // [max_num_seqs, ceil(V/32)]
};

// ---- upload -----------------------------------------------------------------------------------------------------

// `bytes` (a multiple of 4) from payload + offset to `to`.
struct Segment {
  void* to = nullptr;
  uint32_t offset = 0;
  uint32_t bytes = 0;
};
void scatter(const uint8_t* payload, const Segment* segments, int num_segments, cudaStream_t stream);

// ---- inputs of rows -----------------------------------------------------------------------------------------------

struct GatherInputs {
  int num_rows = 0;
  int block_size = 0;
  SlotArrays slots;
  const int32_t* row_req = nullptr;             // [T], -1: padding
  const int32_t* req_slot = nullptr;            // [R]
  const int32_t* req_first_row = nullptr;       // [R]
  const int32_t* req_first_position = nullptr;  // [R], -1: decode
  const int32_t* req_max_seq_len = nullptr;     // [R]
  int32_t* token_ids = nullptr;
  int32_t* positions = nullptr;
  int64_t* slot_mapping = nullptr;
};
void gather_inputs(const GatherInputs& a, cudaStream_t stream);

}  // namespace manta::backend::cuda
