// The decision: which requests run, with how many tokens, in which blocks. It decides and nothing else: no tensors, no
// clocks, no threads. One thread (the engine's) calls it.
//
//   add / abort     at any time
//   plan            what the next step does; the caller must submit it. May be called again before the step before is
//                   collected (async scheduling): decode slices hold bounds, the device knows the positions.
//   collect         the results, in the order of the plans; what became of each request
//
// Order: (priority, arrival) in every queue; with the fcfs policy priority is ignored. Running requests come before
// waiting ones and generating ones before prompts, so a step that is full delays new requests and never a stream.
// When blocks run out, the last in the order gives its blocks back and is computed again later (preemption by
// recompute); the first always gets on, so nobody starves. Cost per step: O(running), whatever waits.
//
// Blocks are given back at once, while a step that still writes to them may be in flight: steps run in the order of
// their plans, so whoever gets the block next writes it later. For the same reason the rows of a planned prefill count
// as cached for the next plan.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/block_pool.h"
#include "kv/kv_actions.h"
#include "kv/kv_connector_scheduler.h"
#include "sample/finish_reason.h"
#include "sample/grammar_matcher.h"
#include "sample/sampling_params.h"
#include "sched/step_plan.h"
#include "sched/step_result.h"

namespace manta::sched {

enum class Policy : uint8_t { kFcfs, kPriority };

struct SchedulerOptions {
  int num_blocks = 0;
  int block_size = 64;
  int max_num_seqs = 256;
  int max_num_batched_tokens = 2048;  // rows of a step; >= max_num_seqs
  int max_model_len = 4096;           // tokens of a sequence, prompt and generated
  int num_speculative_tokens = 0;
  int long_prefill_token_threshold = 0;  // a prompt takes at most this many tokens of a step; 0 = no bound
  Policy policy = Policy::kFcfs;
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;
  int vocab_size = 0;                   // of the logits: the width of a grammar's bitmask; 0 = no grammars
  bool recompute_failed_loads = false;  // else a request whose remote rows did not come ends with an error
  double watermark = 0.0;               // share of the blocks that a new request must leave available, while others run
};

struct Request {
  RequestId id;
  std::vector<TokenId> tokens;  // the prompt, then what an earlier engine generated
  int num_prompt_tokens = 0;    // tokens[0, num_prompt_tokens) are the prompt
  sample::SamplingParams sampling;
  int priority = 0;                                 // lower is sooner
  std::string cache_salt;                           // requests share cached blocks only with the same salt
  std::shared_ptr<sample::GrammarMatcher> grammar;  // null = any text; at the start, before any generated token
  std::string kv_transfer_params;                   // JSON object for the connector, or empty
};

using sample::FinishReason;

// What happened to one request. After a finish the id is forgotten.
struct RequestEvent {
  RequestId id;
  std::vector<TokenId> tokens;
  std::vector<sample::TokenLogprobs> logprobs;         // as tokens, empty unless asked for
  std::vector<sample::TokenLogprobs> prompt_logprobs;  // from prompt token 1 on, in pieces as the prompt is computed
  FinishReason finish = FinishReason::kNone;
  TokenId stop_token = -1;         // with kStop: the end or stop token; it is also the last of tokens
  int num_cached_tokens = 0;       // tokens found in the cache, or brought by a peer, when the request first ran
  Error error;                     // with kError
  std::string kv_transfer_params;  // on the last one, the connector's words for whoever continues; or empty
};

// Where things stand. Counters only grow.
struct SchedulerStats {
  int num_waiting = 0;  // for a seat, for blocks or for a peer's rows
  int num_running = 0;
  int num_loading = 0;  // of the waiting: for a peer's rows
  int num_blocks = 0;
  int num_available_blocks = 0;  // free, or cached and unused: what a new request can get
  double kv_cache_usage = 0;     // [0, 1], blocks in use or held
  uint64_t num_preemptions = 0;
  uint64_t prefix_cache_queries = 0;  // tokens looked up
  uint64_t prefix_cache_hits = 0;     // tokens found
  uint64_t num_draft_tokens = 0;
  uint64_t num_accepted_draft_tokens = 0;
};

struct RequestState;

class Scheduler {
 public:
  // Fails with the values and the bounds when the options contradict each other. The connector, if any, is not owned.
  static Result<std::unique_ptr<Scheduler>> make(const SchedulerOptions& options,
                                                 kv::KvConnectorScheduler* connector = nullptr);
  ~Scheduler();

  // kInvalidArgument, with the numbers, for what can never run here.
  Status add(Request request);
  // Its blocks are available to the very next plan, and no event names it any more. False: not known (any more).
  bool abort(RequestId id);

  // nullopt: nothing to do now. `dp` is what the group agreed on and is copied into the plan; with dp.dummy an idle
  // rank gets an empty plan, so that the others' collectives find it.
  std::optional<StepPlan> plan(const DpAgreement& dp);

  // For when plan() has nothing and awaits_peers(): a step without tokens, which lets the executor tell how far the
  // transfers are. The caller decides how often; nothing here spins.
  StepPlan plan_transfers(const DpAgreement& dp);
  bool awaits_peers() const { return num_loading_ > 0 || !held_.empty(); }

  // `slots` and `kv` as the executor gave them for the oldest plan not collected yet. kInternal: they do not fit it.
  Result<std::vector<RequestEvent>> collect(StepId step, std::vector<SlotResult> slots, const kv::KvProgress& kv = {});

  // What peers did while no step of ours ran: as the `kv` of collect().
  std::vector<RequestEvent> transferred(const kv::KvProgress& kv);

  // The steps in flight will never be collected and the device has forgotten its slots: the requests that had a seat
  // wait for one again, with the tokens they have. Blocks that such a step was to fill leave the prefix cache; those
  // that were full before stay in it.
  void abandon_steps();

  // Requests that ended while planning, because the connector refused them. Also in what collect() gives next.
  std::vector<RequestEvent> take_events() { return std::exchange(events_, {}); }

  bool has_requests() const { return !requests_.empty(); }
  int num_in_flight() const { return static_cast<int>(in_flight_.size()); }
  SchedulerStats stats() const;
  const kv::BlockPool& blocks() const { return pool_; }

 private:
  // What a step in flight will bring for one request.
  struct Expected {
    RequestState* request;
    SlotId slot;
    int first_token;  // prefill: position of the slice's first token; decode: -1
    int num_rows;
    int max_new_tokens;  // 0 for a middle piece of a prompt
  };
  struct Step {
    StepId id = 0;
    std::vector<Expected> requests;
    std::vector<BlockId> prefill_blocks;  // that its prefills write to
  };
  struct Sooner {
    bool operator()(const RequestState* a, const RequestState* b) const;
  };

  Scheduler(const SchedulerOptions& options, kv::KvConnectorScheduler* connector);

  int blocks_for(int num_rows) const { return (num_rows + options_.block_size - 1) / options_.block_size; }
  int max_num_tokens(const RequestState& r) const;  // where the sequence ends at the latest
  Status check(const Request& request) const;
  Status check_grammar(Request& request) const;

  // plan()
  StepPlan start_plan(const DpAgreement& dp);
  void finish_plan(StepPlan& plan, Step step);
  void plan_decodes(StepPlan& plan, Step& step);
  void plan_prefills(StepPlan& plan, Step& step);
  void plan_admissions(StepPlan& plan, Step& step);
  int decode_rows(const RequestState& r, int budget) const;
  int prefill_rows(const RequestState& r, int num_computed_tokens) const;
  void add_decode(StepPlan& plan, Step& step, RequestState& r, int rows, std::vector<BlockId> new_blocks);
  void add_prefill(StepPlan& plan, Step& step, RequestState& r, int rows, std::vector<BlockId> new_blocks);
  bool grow(RequestState& r, int num_rows, std::vector<BlockId>& new_blocks);
  bool grow_or_preempt(RequestState& r, size_t index, int num_rows, std::vector<BlockId>& new_blocks);
  bool preempt_after(size_t index);
  bool admit_loaded(StepPlan& plan, Step& step);
  bool admit_next(StepPlan& plan, Step& step);
  bool fits(const RequestState& r, const std::vector<BlockId>& prefix);
  void take_seat(StepPlan& plan, RequestState& r, int num_cached_tokens, int rows);
  std::vector<uint32_t> next_bitmask(RequestState& r);
  std::vector<BlockId> find_prefix(RequestState& r);

  // with a connector (scheduler_kv.cc)
  enum class Match : uint8_t { kNone, kNow, kElsewhere };  // elsewhere: the request left the queue
  Match ask_connector(RequestState& r, const std::vector<BlockId>& prefix, int& num_external_tokens);
  void start_load(RequestState& r, std::vector<BlockId> prefix, int num_external_tokens);
  void end_load(RequestState& r, int num_valid_tokens);
  bool unload_last();
  void requeue(RequestState& r);
  void apply_progress(const kv::KvProgress& progress);
  void end_hold(RequestId id);

  // collect()
  RequestEvent apply(RequestState& r, const Expected& expected, SlotResult& result);
  bool append_token(RequestState& r, TokenId token, RequestEvent& event);
  Status check_result(StepId step, const Expected& expected, const SlotResult* result) const;

  void hash_blocks(RequestState& r);
  void publish_blocks(RequestState& r, int num_rows);
  void give_up_seat(RequestState& r);
  void give_back_blocks(RequestState& r);
  void leave_queue(RequestState& r);
  void finish(RequestState& r, RequestEvent& event);  // it got its text
  void fail(RequestState& r, Error error);            // into events_
  void drop(RequestState& r);
  void sweep();

  const SchedulerOptions options_;
  kv::KvConnectorScheduler* const connector_;  // may be null
  kv::BlockPool pool_;
  kv::BlockHasher hasher_;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::set<RequestState*, Sooner> waiting_;
  std::set<RequestState*, Sooner> loaded_;               // have their blocks, want a slot
  std::vector<RequestState*> undecided_;                 // asked again by the next plan
  std::vector<RequestState*> running_;                   // in order; may hold finished ones until sweep()
  std::vector<std::unique_ptr<RequestState>> finished_;  // until no step in flight names them
  std::deque<Step> in_flight_;
  std::vector<SlotId> free_slots_;
  std::vector<SlotId> released_;  // go into the next plan
  // Blocks of finished requests that a peer reads, and of aborted ones that a load still writes.
  std::unordered_map<RequestId, std::vector<BlockId>> held_;
  std::vector<RequestEvent> events_;
  std::vector<SlotResult*> by_slot_;  // of the step being collected
  std::vector<Expected> spare_;       // a collected step's storage, for the next
  uint64_t blocked_arrival_ = 0;      // the head of the queue, found no room when so many blocks were available
  int blocked_at_available_ = 0;
  int budget_ = 0;  // rows left in the plan being made
  bool short_of_blocks_ = false;
  StepId next_step_ = 1;
  uint64_t next_arrival_ = 1;
  int num_running_ = 0;
  int num_loading_ = 0;
  SchedulerStats counters_;
};

}  // namespace manta::sched
