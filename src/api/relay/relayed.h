// What a router adds to a client's request, so that the prompt is tokenized once, the answer can be continued by
// another api process, and prefill and decode meet.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"

namespace manta::api {

// What the client has of one choice already.
struct Delivered {
  std::vector<TokenId> tokens;
  bool finished = false;
};

struct Relayed {
  std::vector<std::vector<TokenId>> prompts;  // in the body's order
  std::string transfer_id;                    // of the KV cache; each sequence adds "-" and its index. Empty: none
  std::string kv_transfer_params;             // JSON object beside transfer_id; with one only
  bool prefill_only = false;                  // the KV cache is wanted, not the answer: one token of each sequence
  int32_t data_parallel_rank = -1;            // -1: any
  uint64_t seed = 0;                          // of requests that bring none: sequence i gets seed + i
  int64_t created = 0;                        // Unix seconds, as the answer says
  std::vector<Delivered> delivered;           // by choice; empty for a fresh request
};

}  // namespace manta::api
