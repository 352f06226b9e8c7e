// The scheduler's record of one request. Private to the room.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "kv/block_hash.h"
#include "sched/scheduler.h"

namespace manta::sched {

enum class Phase : uint8_t {
  kWaiting,    // in the queue, without blocks
  kUndecided,  // the connector does not know yet whether a peer has its tokens
  kLoading,    // a peer's rows are on their way into its blocks
  kLoaded,     // they are there; it goes on as soon as a slot is free
  kRunning,
  kFinished,
};

struct RequestState {
  Request request;  // request.tokens grows as tokens are collected
  uint64_t arrival = 0;
  int priority = 0;  // 0 with fcfs
  Phase phase = Phase::kWaiting;
  bool ran_before = false;
  StepId planned_in = 0;  // the last plan that has it

  SlotId slot = -1;
  std::vector<BlockId> blocks;        // its block table
  std::vector<kv::BlockHash> hashes;  // of the full blocks of request.tokens, made once
  kv::BlockHash root;                 // parent of the first block
  bool asked_connector = false;       // and got an answer
  int num_loaded_tokens = 0;          // leading tokens whose rows a load brought, or found here
  int num_published_blocks = 0;       // leading blocks that were offered to the prefix cache
  int num_admitted_tokens = 0;        // known when it took its seat: these are prefilled, later ones decoded
  int num_planned_tokens = 0;         // of those, with rows in plans made so far

  int num_in_flight = 0;   // steps that name it
  int max_new_tokens = 0;  // the most tokens they can add

  int num_cached_tokens = 0;         // at its first admission
  int num_prompt_logprobs_sent = 0;  // entries already in events
  bool first_event = true;

  int num_tokens() const { return static_cast<int>(request.tokens.size()); }
  int num_generated() const { return num_tokens() - request.num_prompt_tokens; }
  bool prefilling() const { return num_planned_tokens < num_admitted_tokens; }
  bool wants_prompt_logprobs() const {
    return request.sampling.num_prompt_logprobs >= 0 && num_prompt_logprobs_sent < request.num_prompt_tokens - 1;
  }
};

}  // namespace manta::sched
