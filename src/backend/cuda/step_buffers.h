// One microbatch's metadata on the device, at fixed addresses: the views that stages see, what gather and sampling need
// beside them, and what sampling leaves for the host.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/attention/prefill_plan.h"
#include "backend/cuda/sample/sample.h"
#include "backend/cuda/upload.h"
#include "backend/host/step_builder.h"

namespace manta::backend::cuda {

class StepBuffers {
 public:
  // max_prefill_rows: see plan_prefill.
  Status init(const ModelShape& shape, const Limits& limits, const Tensor& block_tables, int max_prefill_rows);
  static size_t num_bytes(const ModelShape& shape, const Limits& limits, int max_prefill_rows);

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

  // How the rows of the last put() attend; its tables on the device.
  const PrefillPlan& prefill() const { return prefill_; }
  const KvSegment* segments() const { return segments_; }
  const PrefillItem* items() const { return items_; }
  const int32_t* is_expanded() const { return is_expanded_; }

  // Of the last put(): where the results stand.
  const LogprobRows& sampled() const { return sampled_; }
  const LogprobRows& prompt_results() const { return prompt_results_; }
  const int32_t* faults() const { return faults_; }  // [max_num_seqs] RowFaultCode, then as many lengths

 private:
  Status init_sampling(const ModelShape& shape, const Limits& limits);
  void put_prefill(std::span<const host::Piece> pieces, int num_rows, Upload& upload);

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
  int max_prefill_rows_ = 0;
  PrefillPlan prefill_;
  KvSegment* segments_ = nullptr;
  PrefillItem* items_ = nullptr;
  int32_t* is_expanded_ = nullptr;  // [R]
};

}  // namespace manta::backend::cuda
