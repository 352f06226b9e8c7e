// What api and engine say to each other. Plain values; encode() and decode_*() turn them into frame payloads.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "sample/finish_reason.h"
#include "sample/sampling_params.h"

namespace manta::engine {

// kHello, api -> engine.
struct Hello {
  uint64_t client = 0;  // becomes RequestId::client of everything this connection submits
  std::string process;  // "api pid 4711 loop 2", for logs
};

// kWelcome, engine -> api: what a front-end must know to admit requests.
struct Welcome {
  int32_t rank = 0;
  int32_t pid = 0;
  std::string model;
  int32_t vocab_size = 0;
  int32_t max_model_len = 0;
  int32_t max_num_seqs = 0;
  int32_t num_blocks = 0;
  int32_t block_size = 0;
  int32_t num_speculative_tokens = 0;
  std::string role = "mixed";  // prefill, decode or mixed
  // With a KV connector a JSON object {kv_connector, kv_role, engine_id, host, port}: where a request must be sent to
  // pull from this engine. Empty without.
  std::string kv_transfer;
};

// kSubmit: one request, whole.
struct Submit {
  RequestId id;
  std::vector<TokenId> tokens;    // prompt, then tokens generated earlier (resubmission)
  int32_t num_prompt_tokens = 0;  // tokens[0, n) are the prompt
  sample::SamplingParams sampling;
  int32_t priority = 0;            // lower is sooner; 0 unless scheduling_policy is priority
  std::string cache_salt;          // separates prefix caches
  std::string kv_transfer_params;  // JSON object or empty
};

// kAbort: nothing more is wanted of these. Ids already finished are no error.
struct Abort {
  std::vector<RequestId> ids;
};

using sample::FinishReason;

// What one step gave one request.
struct RequestOutput {
  RequestId id;
  std::vector<TokenId> tokens;
  std::vector<sample::TokenLogprobs> logprobs;         // as tokens, empty unless asked for
  std::vector<sample::TokenLogprobs> prompt_logprobs;  // from position 1 on, in pieces as chunks complete
  FinishReason finish = FinishReason::kNone;
  TokenId stop_token = -1;        // with kStop: which end or stop token; its id is also the last of tokens
  int32_t num_cached_tokens = 0;  // prompt tokens that were not computed; on the first output
  ErrorCode error_code = ErrorCode::kInternal;  // with kError
  std::string error_message;                    // with kError
  std::string kv_transfer_params;               // on the last output, JSON object or empty
  // On the output with the first tokens, else -1: from the engine's taking the request to its first step, and from
  // there to these tokens. A request that was sent again counts anew.
  int64_t queue_us = -1;
  int64_t prefill_us = -1;

  int32_t rank = -1;  // not sent: the front-end's note of the engine that this came from
};

// How full an engine is and what it has done since it started; rides on every kOutputs and kLoad frame. Counters only
// grow, until the process is replaced.
struct Load {
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int32_t num_free_blocks = 0;  // free, or cached and unused
  int32_t num_blocks = 0;
  uint64_t num_prompt_tokens = 0;      // of the requests that were admitted
  uint64_t num_generation_tokens = 0;  // handed out
  uint64_t num_preemptions = 0;
  uint64_t prefix_cache_queries = 0;  // tokens
  uint64_t prefix_cache_hits = 0;     // tokens
  uint64_t num_drafts = 0;            // tokens drafted by the MTP module and verified
  uint64_t num_accepted_drafts = 0;
  uint64_t kv_bytes_received = 0;  // cache rows from other engines
  uint64_t kv_bytes_sent = 0;      // cache rows that other engines said they have
  uint64_t num_kv_failed = 0;      // loads that did not come
  uint64_t num_kv_expired = 0;     // hand-offs nobody fetched in time
  uint64_t num_kv_refused = 0;     // readers that were too late
  uint64_t num_kv_leases = 0;      // hand-offs alive
  uint64_t num_steps = 0;
  uint64_t schedule_us = 0;  // where the steps' time went, sums
  uint64_t forward_us = 0;
  uint64_t dispatch_us = 0;
  uint64_t combine_us = 0;
  uint64_t sample_us = 0;
  // Of expert-parallel ranks; else 0. num_steps has the real steps only, and so have the times.
  uint64_t group_epoch = 0;            // of the group it is in; 0 while it waits for one
  uint64_t group_size = 0;             // ranks of that group
  uint64_t num_dummy_steps = 0;        // took part without rows of its own, so that the others' collectives find it
  uint64_t agree_wait_us = 0;          // time in which the device stood still for a decision of the group
  uint64_t num_aborted_steps = 0;      // of a group that fell apart; their requests are computed again
  uint64_t ep_dispatch_rows = 0;       // rows sent to experts of other ranks
  uint64_t ep_dispatch_bytes = 0;      // of those rows
  uint64_t dbo_split_steps = 0;        // steps of two microbatches
  uint64_t dbo_vote_failed_steps = 0;  // it asked for two, another rank did not
  uint64_t dbo_below_threshold_steps = 0;
  uint64_t num_eplb_rearrangements = 0;
};

// What expert load balancing last saw: one window of steps, over all ranks of the group.
struct ExpertReport {
  int32_t num_layers = 0;            // MoE layers; 0: there is no report
  int32_t num_experts = 0;           // logical
  std::vector<double> balancedness;  // [num_layers]: mean over ranks / max over ranks of the tokens routed to them
  std::vector<uint64_t> tokens;      // [num_layers, num_experts]: routed to each expert, all replicas together
};

// Steps with rows of the engine's own by how long the executor had them, experts taken over behind a step included. A
// step is longer than one bound and at most as long as the next; those beyond the last bound are counted last.
inline constexpr std::array<double, 20> kStepTimeBounds = {.0005, .001, .0014, .002, .0028, .004, .0056,
                                                           .008,  .011, .016,  .022, .032,  .045, .064,
                                                           .09,   .128, .256,  .512, 1,     4};
using StepTimes = std::array<uint64_t, kStepTimeBounds.size() + 1>;

// kLoad: an engine's load between its outputs, at most every kLoadPeriod and only when something moved; sent from a
// thread that no step can block, so that a stuck engine says where.
struct LoadReport {
  Load load;
  uint64_t step = 0;
  int32_t layer = -1;
  std::string stage = "idle";
  bool busy = false;                 // has steps in flight
  ExpertReport experts;              // without layers: as before
  std::vector<uint64_t> step_times;  // StepTimes
};
inline constexpr std::chrono::milliseconds kLoadPeriod{250};

// kOutputs: everything a step gave this connection's requests. Without requests: the engine went idle, for its load.
struct Outputs {
  StepId step = 0;
  Load load;
  std::vector<RequestOutput> requests;
};

// kStale: these submits were not accepted because the frame's epoch was not `current`; send them again with it.
struct Stale {
  uint64_t current = 0;
  std::vector<RequestId> ids;
};

std::string encode(const Hello&);
std::string encode(const Welcome&);
std::string encode(const Submit&);
std::string encode(const Abort&);
std::string encode(const Outputs&);
std::string encode(const Stale&);
std::string encode(const LoadReport&);
Result<Hello> decode_hello(std::string_view payload);
Result<Welcome> decode_welcome(std::string_view payload);
Result<Submit> decode_submit(std::string_view payload);
Result<Abort> decode_abort(std::string_view payload);
Result<Outputs> decode_outputs(std::string_view payload);
Result<Stale> decode_stale(std::string_view payload);
Result<LoadReport> decode_load_report(std::string_view payload);

}  // namespace manta::engine
