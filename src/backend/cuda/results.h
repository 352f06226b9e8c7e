// What a step brings back: copied to page-locked memory behind the step's kernels, read once its event has passed.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/cuda/step_buffers.h"

namespace manta::backend::cuda {

class StepResults {
 public:
  Status init(const Limits& limits, int vocab_size);
  // What the step can produce; after the slots were applied.
  void begin(const StepInputs& inputs, const host::SlotTable& slots);
  // One microbatch, before its buffers are used again.
  Status copy(const StepView& view, const StepBuffers& buffers, std::span<const host::Piece> pieces,
              cudaStream_t stream);
  // Rows per physical expert of each layer; values [layers x num_physical] on the device.
  Status copy_load(const int32_t* values, int num_layers, int num_physical, cudaStream_t stream);
  Status finish_copies(cudaStream_t stream) { return done_.record(stream); }
  // Waits. kInternal when a slice should have sampled and did not.
  Result<StepOutputs> take();

 private:
  struct Outcome {
    StepOutputs::Slice slice;
    bool reports = false, pending = false;
    int first_position = -1, num_prompt_tokens = 0;
    int num_logprobs = -1, num_prompt_logprobs = -1;
  };
  // A microbatch's results, offsets in `host_`.
  struct Part {
    std::vector<host::Piece> pieces;
    int max_rows = 1;
    size_t tokens = 0, accepted = 0, faults = 0;
    size_t ids = 0, values = 0, ranks = 0;                       // sampled
    size_t prompt_ids = 0, prompt_values = 0, prompt_ranks = 0;  // of prompts
  };
  Result<size_t> fetch(const void* from, size_t num_bytes, cudaStream_t stream);
  template <typename T>
  const T* at(size_t offset) const {
    return reinterpret_cast<const T*>(host_.data() + offset);
  }
  void read_sampled(const Part& part, const host::Piece& piece);
  void read_prompts(const Part& part, const host::Piece& piece);
  sample::TokenLogprobs logprobs(size_t ids, size_t values, size_t ranks, int64_t row, int num_best) const;

  Limits limits_;
  int vocab_size_ = 0;
  PinnedMemory host_;
  size_t used_ = 0;
  Event done_;
  std::vector<Outcome> outcomes_;  // by slice of the step
  std::vector<Part> parts_;
  size_t load_ = 0;
  int num_load_layers_ = 0, num_physical_ = 0;
};

}  // namespace manta::backend::cuda
