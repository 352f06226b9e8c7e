// StepPlan -> what a backend takes, and its outputs -> StepResult. No device here: slots, spans and counts.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "exec/executor.h"
#include "sched/step_plan.h"

namespace manta::exec {

// The inputs of one step. Views into the plan, which must outlive them and not move.
class StepInputs {
 public:
  explicit StepInputs(int max_num_seqs) : prompt_of_slot_(max_num_seqs) {}
  StepInputs(const StepInputs&) = delete;

  // Rows: decodes first, so that a DBO cut falls into prompts, then prefills in the order of the plan: one may read the
  // rows that an earlier one writes.
  const backend::StepInputs& build(const sched::StepPlan& plan);

  // Slots with something to say: sampled tokens, prompt logprobs or an error.
  StepResult result(const sched::StepPlan& plan, backend::StepOutputs outputs) const;

 private:
  struct Prompt {
    int num_tokens = 0;
    bool wants_logprobs = false;
  };
  std::vector<Prompt> prompt_of_slot_;  // of the requests that have a slot now
  std::vector<backend::SlotAdmission> admitted_;
  std::vector<backend::RowSlice> slices_;
  backend::StepInputs inputs_;
};

}  // namespace manta::exec
