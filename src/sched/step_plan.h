// StepPlan: the decision for one step, and the record every later room reads. A value: no pointers into the
// scheduler, so it can be queued, sent, recorded and replayed; prompt and sampling parameters travel once, at
// admission, blocks as deltas.
//
// For decode slots the plan holds bounds, not positions. The device owns each slot's length, its last 1 + k tokens
// (k drafts of the MTP module) and the number accepted, so plan n+1 can be submitted before step n is collected.
// Blocks are reserved for the worst case; what was not used comes back when the step is collected.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "kv/kv_actions.h"
#include "sample/sampling_params.h"

namespace manta::sched {

// A request takes a seat. Its tokens and parameters go to the device here and nowhere else.
struct NewRequest {
  SlotId slot = -1;
  RequestId id;
  std::vector<TokenId> tokens;  // the prompt, then what was generated before a preemption or resubmission
  int num_prompt_tokens = 0;    // tokens[0, num_prompt_tokens) are the prompt; penalties tell them apart
  int num_computed_tokens = 0;  // leading tokens whose cache rows exist already (prefix hit, remote prefill)
  std::vector<BlockId> blocks;  // the block table so far, cached blocks first
  sample::SamplingParams sampling;
};

// A piece of a request's known tokens. Positions are known to the host.
struct PrefillSlice {
  SlotId slot = -1;
  int num_computed_tokens = 0;          // position of the first token of the slice
  int num_scheduled_tokens = 0;         // >= 1
  bool samples = false;                 // the slice ends at the last known token: sample the next one
  std::vector<BlockId> new_blocks;      // appended to the slot's block table before the step
  std::vector<uint32_t> token_bitmask;  // grammar: bit t of word t/32 allows token t; empty = all allowed
};

// A running request generates. The device knows where it stands: last sampled token, then its drafts.
struct DecodeSlice {
  SlotId slot = -1;
  int max_num_tokens = 1;  // 1 + drafts to verify: rows of the step
  int max_seq_len = 0;     // tokens after the step at most, the sampled ones included; never above max_model_len
  std::vector<BlockId> new_blocks;
  // A request with a grammar is planned only after its last token is collected, alone (max_num_tokens 1).
  std::vector<uint32_t> token_bitmask;
};

// What the ranks of a DP group agreed on for this step; the same on every rank.
struct DpAgreement {
  Epoch epoch;
  bool all_decode = false;
  int padded_num_tokens = 0;  // rows per microbatch and rank after padding; 0 = no padding asked for
  int num_microbatches = 1;
  bool dummy = false;  // this rank has nothing to do and only keeps the others' collectives company
};

struct StepPlan {
  StepId id = 0;
  Epoch epoch;
  std::vector<SlotId> released;  // seats given up; applied before admitted
  std::vector<NewRequest> admitted;
  std::vector<PrefillSlice> prefills;
  std::vector<DecodeSlice> decodes;
  DpAgreement dp;
  kv::KvActions kv;

  int max_num_tokens() const {  // rows of the step at most
    int n = 0;
    for (const auto& p : prefills) n += p.num_scheduled_tokens;
    for (const auto& d : decodes) n += d.max_num_tokens;
    return n;
  }
  bool empty() const { return prefills.empty() && decodes.empty() && kv.empty(); }
};

}  // namespace manta::sched
