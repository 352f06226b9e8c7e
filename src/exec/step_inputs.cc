#include "exec/step_inputs.h"

namespace manta::exec {

const backend::StepInputs& StepInputs::build(const sched::StepPlan& plan) {
  admitted_.clear();
  slices_.clear();
  for (const sched::NewRequest& request : plan.admitted) {
    admitted_.push_back({request.slot, request.tokens, request.num_prompt_tokens, request.blocks, &request.sampling});
    if (request.slot < 0 || request.slot >= static_cast<SlotId>(prompt_of_slot_.size())) continue;  // plan() refuses it
    prompt_of_slot_[request.slot] = {request.num_prompt_tokens, request.sampling.num_prompt_logprobs >= 0};
  }
  for (const sched::DecodeSlice& decode : plan.decodes) {
    backend::RowSlice& slice = slices_.emplace_back();
    slice.slot = decode.slot;
    slice.num_rows = decode.max_num_tokens;
    slice.samples = true;
    slice.max_seq_len = decode.max_seq_len;
    slice.new_blocks = decode.new_blocks;
    slice.token_bitmask = decode.token_bitmask;
  }
  for (const sched::PrefillSlice& prefill : plan.prefills) {
    backend::RowSlice& slice = slices_.emplace_back();
    slice.slot = prefill.slot;
    slice.num_rows = prefill.num_scheduled_tokens;
    slice.first_position = prefill.num_computed_tokens;
    slice.samples = prefill.samples;
    slice.max_seq_len = prefill.num_computed_tokens + prefill.num_scheduled_tokens + (prefill.samples ? 1 : 0);
    slice.new_blocks = prefill.new_blocks;
    slice.token_bitmask = prefill.token_bitmask;
    if (prefill.slot < 0 || prefill.slot >= static_cast<SlotId>(prompt_of_slot_.size())) continue;
    const Prompt& prompt = prompt_of_slot_[prefill.slot];
    slice.prompt_logprobs = prompt.wants_logprobs && prefill.num_computed_tokens < prompt.num_tokens - 1;
  }
  inputs_.released = plan.released;
  inputs_.admitted = admitted_;
  inputs_.slices = slices_;
  inputs_.padded_num_tokens = plan.dp.padded_num_tokens;
  inputs_.num_microbatches = plan.dp.num_microbatches;
  return inputs_;
}

StepResult StepInputs::result(const sched::StepPlan& plan, backend::StepOutputs outputs) const {
  StepResult out;
  out.id = plan.id;
  out.epoch = plan.epoch;
  out.slots.reserve(outputs.slices.size());
  std::vector<int> num_drafts(prompt_of_slot_.size());
  for (const sched::DecodeSlice& decode : plan.decodes) num_drafts[decode.slot] = decode.max_num_tokens - 1;
  for (backend::StepOutputs::Slice& slice : outputs.slices) {
    if (slice.tokens.empty() && slice.prompt_logprobs.empty() && slice.error.empty()) continue;
    SlotResult& slot = out.slots.emplace_back();
    slot.slot = slice.slot;
    slot.num_accepted = static_cast<int>(slice.tokens.size());
    slot.tokens = std::move(slice.tokens);
    slot.logprobs = std::move(slice.logprobs);
    slot.prompt_logprobs = std::move(slice.prompt_logprobs);
    slot.num_drafted = num_drafts[slice.slot];
    slot.error = std::move(slice.error);
  }
  out.expert_load = std::move(outputs.expert_load);
  return out;
}

}  // namespace manta::exec
