// Logits to tokens on the device: sample/sampler.h is the definition. Masks, biases, penalties, filters and the noise
// of (seed, position, token) are the same; probabilities are summed as integers (2^-44), so that a sum has no order.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/step/slots.h"

namespace manta::backend::cuda {

constexpr int kMaxLogprobs = 64;  // best tokens of a row that the device can report

// What one row reports: of the chosen (or prompt) token first, then of the best.
struct LogprobRows {
  int32_t* ids = nullptr;    // [rows, 1 + kMaxLogprobs]
  float* values = nullptr;   // likewise
  int32_t* ranks = nullptr;  // [rows]
};

enum RowFaultCode : int32_t { kRowFine = 0, kRowNotFinite = 1, kRowNothingAllowed = 2 };

struct SampleRows {
  SlotArrays slots;
  int vocab_size = 0;
  int max_slices = 0;                   // grid; those beyond *num_slices do nothing
  const int32_t* num_slices = nullptr;  // device
  const float* logits = nullptr;        // [S, V]
  const int32_t* slice_slot = nullptr;  // [max_slices], and so on
  const int32_t* first_logit_row = nullptr;
  const int32_t* num_rows = nullptr;
  const int32_t* has_bitmask = nullptr;
  const uint32_t* bitmask = nullptr;    // [max_slices, ceil(V/32)]
  const int32_t* logit_rows = nullptr;  // [S]
  const int32_t* positions = nullptr;   // [T]
  const int32_t* token_ids = nullptr;   // [T]
  int32_t* next_token_ids = nullptr;    // [T]
  int max_rows = 1;
  float* scratch = nullptr;  // [max_slices, V]
  int32_t* marks = nullptr;  // [max_slices, V], zero between uses
  // out
  int32_t* tokens = nullptr;  // [max_slices, max_rows]
  int32_t* num_accepted = nullptr;
  int32_t* draft_row = nullptr;
  int32_t* fault = nullptr;         // [max_slices] RowFaultCode
  int32_t* fault_length = nullptr;  // [max_slices] tokens of the sequence then
  LogprobRows logprobs;             // row: slice * max_rows + row
};
void sample_rows(const SampleRows& a, cudaStream_t stream);

// The draft of each slice that accepted something, from row i of logits, into its slot.
void draft_rows(const SampleRows& a, cudaStream_t stream);

// Log probabilities of prompt tokens: row i of logits says something about target[i] (-1: nothing), with num_best[i].
struct PromptLogprobs {
  const float* logits = nullptr;
  int vocab_size = 0;
  int num_rows = 0;
  const int32_t* target = nullptr;
  const int32_t* num_best = nullptr;
  LogprobRows out;
};
void prompt_logprobs(const PromptLogprobs& a, cudaStream_t stream);

}  // namespace manta::backend::cuda
