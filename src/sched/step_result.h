// What a step gives back, slot by slot: the counterpart of StepPlan. Here and not in exec, because the scheduler
// reads it and must not know executors.
#pragma once

#include <string>
#include <vector>

#include "base/ids.h"
#include "sample/sampling_params.h"

namespace manta::sched {

// What one slot produced. Slots that only prefilled a middle piece are absent, unless they have prompt_logprobs.
struct SlotResult {
  SlotId slot = -1;
  int num_accepted = 0;                         // tokens this step added to the sequence: 1 + accepted drafts
  std::vector<TokenId> tokens;                  // [num_accepted]
  std::vector<sample::TokenLogprobs> logprobs;  // [num_accepted], empty unless asked for
  // Row i of a prefill slice gives the entry of prompt token i + 1; prompt token 0 has none, and the row of the last
  // prompt token samples instead. Empty unless asked for.
  std::vector<sample::TokenLogprobs> prompt_logprobs;
  int num_drafted = 0;  // drafts verified in this step, for the acceptance metrics
  std::string error;    // not empty: the request must end (its logits are not finite, no token is allowed); no tokens
};

}  // namespace manta::sched
