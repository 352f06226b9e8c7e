// Seam 1: all the engine knows of devices. Submit a plan, collect a result; up to max_in_flight() plans at a time,
// collected in the order they were submitted. Called from the engine's thread only, except where().
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "ep/expert_map.h"
#include "kv/cache_geometry.h"
#include "kv/kv_actions.h"
#include "sched/step_plan.h"
#include "sched/step_result.h"

namespace manta::exec {

struct Ticket {
  StepId id = 0;
};

using Deadline = std::chrono::steady_clock::time_point;

using sched::SlotResult;

// Where the step's time went, microseconds on the device's clock.
struct StepTiming {
  int64_t schedule_us = 0;
  int64_t forward_us = 0;
  int64_t dispatch_us = 0;
  int64_t combine_us = 0;
  int64_t sample_us = 0;
};

// What load balancing saw when it last decided: one window of steps, over all ranks of the group, as the placement
// then spread it.
struct EplbWindow {
  int num_experts = 0;               // logical
  std::vector<double> balancedness;  // by MoE layer: mean over ranks / max over ranks
  std::vector<uint64_t> tokens;      // [layers, num_experts]: routed to each expert, all replicas together
};

// EPLB since the rank started.
struct EplbCounts {
  uint64_t num_rearrangements = 0;           // that ran to their end
  uint64_t num_moved = 0;                    // experts this rank has taken over
  std::shared_ptr<const EplbWindow> window;  // null before the first decision
};

struct StepResult {
  StepId id = 0;
  Epoch epoch;
  std::vector<SlotResult> slots;
  kv::KvProgress kv;
  std::vector<ep::LayerLoad> expert_load;  // tokens this rank routed to each physical expert
  ep::Traffic traffic;                     // of this step, to other ranks
  EplbCounts eplb;
  StepTiming timing;
};

// Where execution stands right now: named when a rank is stuck. Written with relaxed atomics at stage boundaries.
struct StageStamp {
  StepId step = 0;
  int layer = -1;
  const char* stage = "idle";  // static string
  uint64_t counter = 0;        // grows at every stage; standing still means stuck
  bool waits = false;          // in a stage that waits for other ranks
};

struct ExecutorInfo {
  kv::CacheGeometry geometry;  // num_blocks is what fits
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  int max_model_len = 0;
  int vocab_size = 0;
  int num_speculative_tokens = 0;
  int max_in_flight = 1;    // plans that may be submitted and not yet collected
  bool pads_steps = false;  // steps are captured: every rank pads to what the group agreed on
  // Where this rank's expert transport listens. Present: it is one of a group, and form_group() comes before any step.
  std::optional<ep::EpPeer> ep_peer;
  std::string device;  // "cpu (2 threads, avx512_bf16)", for the start-up summary
  struct LedgerLine {
    std::string name;
    size_t bytes = 0;
  };
  std::vector<LedgerLine> memory;  // weights, cache, activations, communication: planned before KV sizing
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorInfo& info() const = 0;

  // Never waits for the device. Fails with kFailedPrecondition when max_in_flight plans are in flight.
  virtual Result<Ticket> submit(sched::StepPlan plan) = 0;

  // Waits (parked) for the oldest submitted plan. kDeadlineExceeded leaves it in flight; any other error is a failed
  // step, and its message names rank, layer and stage. kAborted: the group fell apart; form_group() mends it.
  virtual Result<StepResult> collect(Ticket ticket, Deadline deadline) = 0;

  // `wake` is called, on any thread, when the oldest plan may have become ready. Set once, before the first submit.
  virtual void on_ready(std::function<void()> wake) = 0;

  // Puts this rank into its expert-parallel group; collective over the ranks of `topology`, which names all of them.
  // Again for every new epoch, with nothing in flight: slots are empty afterwards, weights and cache rows stay.
  virtual Status form_group(const ep::EpTopology& topology) = 0;

  // Any thread. Steps of groups below `epoch`, and a form_group() for one, fail with kAborted instead of waiting for
  // their peers; what was submitted behind them is not run. Nothing runs until form_group() succeeds.
  virtual void abort(Epoch epoch) = 0;

  // Finishes what is in flight, then refuses submits. Wakes every wait.
  virtual Status drain() = 0;

  virtual StageStamp where() const = 0;  // any thread
};

}  // namespace manta::exec
