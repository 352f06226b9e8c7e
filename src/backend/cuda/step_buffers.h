// One microbatch's metadata on the device, at fixed addresses: the views that stages see, what gather and sampling need
// beside them, and what sampling leaves for the host.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/sample/sample.h"
#include "backend/cuda/upload.h"
#include "backend/host/step_builder.h"

namespace manta::backend::cuda {

class StepBuffers {
 public:
  Status init(const ModelShape& shape, const Limits& limits, const Tensor& block_tables);
  static size_t num_bytes(const ModelShape& shape, const Limits& limits);

  // The host's view of a microbatch and its pieces -> the same on the device.
  StepView put(const StepInputs& inputs, const StepView& host_view, std::span<const host::Piece> pieces,
               const host::SlotTable& slots, Upload& upload);
  // The same microbatch with every count at the most that `padded` all-decode rows can have: what a captured step is
  // launched with. The device's own counts say what is real.
  StepView bounds(const StepView& view) const;

  GatherInputs gather(const StepView& view, const SlotArrays& slots, int block_size) const;
  SampleRows sampling(const StepView& view, const SlotArrays& slots, const Tensor& logits) const;
  PromptLogprobs prompts(const StepView& view, const Tensor& logits) const;
  bool has_prompts() const { return has_prompts_; }

  // Of the last put(): where the results stand.
  const LogprobRows& sampled() const { return sampled_; }
  const LogprobRows& prompt_results() const { return prompt_results_; }
  const int32_t* faults() const { return faults_; }  // [max_num_seqs] RowFaultCode, then as many lengths

 private:
  Status init_sampling(const ModelShape& shape, const Limits& limits);

  ModelShape shape_;
  Limits limits_;
  DeviceMemory memory_;
  StepView full_;
  int32_t *first_row_ = nullptr, *first_position_ = nullptr, *max_seq_len_ = nullptr;  // [max_num_seqs]
  int32_t *num_slices_ = nullptr, *has_bitmask_ = nullptr, *faults_ = nullptr;
  int32_t *targets_ = nullptr, *num_best_ = nullptr;  // [S]
  LogprobRows sampled_, prompt_results_;
  float* scratch_ = nullptr;
  int32_t* marks_ = nullptr;
  bool has_prompts_ = false;
};

}  // namespace manta::backend::cuda
