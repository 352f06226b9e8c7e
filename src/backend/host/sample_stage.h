// The sample stage of every CPU backend: each row's token by sample::RowSampler, drafts verified, slots moved on, log
// probabilities kept for finish(). One piece of work per slice, on the thread team.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/host/slot_table.h"
#include "backend/host/step_builder.h"
#include "backend/host/thread_team.h"
#include "sample/sampler.h"

namespace manta::backend::host {

class SampleStage {
 public:
  SampleStage(int vocab_size, int num_threads);

  // Makes room for everything the step can produce.
  void begin(const StepInputs& inputs, const SlotTable& slots);
  void run(ThreadTeam& team, const StepView& view, std::span<const Piece> pieces, const Tensor& logits,
           SlotTable& slots);
  // What the step produced, in the order of its slices; kInternal when a slice should have sampled and did not.
  Result<std::vector<StepOutputs::Slice>> take();

  // Draft of slice i from row i of logits [num_slices, V], with the noise that verification will use.
  void draft(ThreadTeam& team, const StepView& view, const Tensor& logits, SlotTable& slots);

 private:
  struct Outcome {
    StepOutputs::Slice slice;
    bool reports = false;  // has something for finish()
    bool pending = false;  // samples, and run() did not come by yet
    int first_position = -1;
    int num_prompt_logprobs = 0;  // best tokens per prompt token; -1 none
  };

  using Bitmask = std::span<const uint32_t>;

  void sample_slice(const StepView& view, const Piece& piece, const Tensor& logits, Slot& slot, int thread);
  TokenId sample_row(std::span<const float> logits, Bitmask bitmask, Slot& slot, StepOutputs::Slice& out, int thread);
  void prompt_rows(const StepView& view, const Piece& piece, const Tensor& logits, const Slot& slot, int thread);
  std::span<const float> row(const Tensor& logits, int64_t i) const;

  int vocab_size_;
  std::vector<sample::RowSampler> samplers_;  // by thread
  std::vector<Outcome> outcomes_;             // by slice of the step
};

}  // namespace manta::backend::host
