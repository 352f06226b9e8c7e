// One DP rank's loop: takes requests, asks the scheduler for a plan, submits it, collects, hands out tokens. It runs on
// a thread of its own; everything else talks to it through its mailbox and never waits for it.
//
// Per step and front-end connection there is one Outputs value. A request ends exactly once, with a finish reason or
// an error, unless the front-end that owns it is gone.
//
// An engine whose executor is one of an expert-parallel group (ExecutorInfo::ep_peer) steps together with the others
// (engine_group.cc): it plans a step, votes, and submits what the group decided, a dummy step when it has nothing. Its
// group may fall apart and be formed again at another epoch; requests live on and lose no token by it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "cluster/messages.h"
#include "engine/grammar_worker.h"
#include "engine/messages.h"
#include "engine/step_voter.h"
#include "exec/executor.h"
#include "sched/scheduler.h"

namespace manta::engine {

inline constexpr uint64_t kAllClients = 0;

struct EngineOptions {
  int rank = 0;
  std::chrono::milliseconds step_deadline{60000};  // a step that takes longer has failed
  // With a KV connector: keeps what it is given, calls it from any thread when transfers got on, and never again once
  // it was given an empty one.
  std::function<void(std::function<void()>)> watch_transfers;
  int max_num_plans = 1;  // in flight: 2 with async scheduling, never above the executor's max_in_flight
  // Smallest step of this rank for which it asks the group to split it into two microbatches; 0 = never.
  int dbo_decode_token_threshold = 0;
  int dbo_prefill_token_threshold = 0;
  // On the engine's thread, once: from here on requests are worked on, which a group's first forming may delay.
  std::function<void()> on_serving;
};

// What the coordinator last said about this rank's group.
struct GroupState {
  Epoch epoch;
  bool complete = false;  // the group of `topology` can form, and this rank is one of it
  bool draining = false;  // every rank that is there drains
  ep::EpTopology topology;
};

// The way to the coordinator; called on the engine's thread, must not wait.
struct GroupLink {
  std::function<void(Epoch, const cluster::Vote&)> vote;
  std::function<void()> changed;  // the snapshot says something that the coordinator should hear of now
};

// A picture of the engine for heartbeats and metrics, consistent as of the last step.
struct Snapshot {
  Load load;
  exec::StageStamp where;
  bool busy = false;
  bool serving = false;                         // see EngineOptions::on_serving
  std::shared_ptr<const ExpertReport> experts;  // of the last window; null before the first
  StepTimes step_times{};
  cluster::GroupPlace group;  // announced: this engine is one of a group
  uint64_t group_step = 0;    // of the oldest step in flight, counted by the group
};

class Engine {
 public:
  // deliver(client, outputs): on the engine's thread, once per step and client with something to say; to kAllClients
  // when the engine has nothing left to do.
  using Deliver = std::function<void(uint64_t client, Outputs&& outputs)>;

  // grammars may be null: requests with structured output are then refused.
  Engine(EngineOptions options, std::unique_ptr<sched::Scheduler> scheduler, std::unique_ptr<exec::Executor> executor,
         MakeGrammarCompiler grammars, Deliver deliver);
  ~Engine();

  // The engine thread's body. Returns when drained or stopped (ok), or with the error of a failed step: the process
  // should then end, and its supervisor starts another.
  Status run();

  // Before run(), for engines of a group.
  void join_group(GroupLink link) { group_link_ = std::move(link); }

  // ---- any thread; none of these waits ----
  void submit(Submit submit);
  void abort(std::vector<RequestId> ids);
  void client_gone(uint64_t client);  // aborts everything it submitted
  void drain();                       // run() returns once the requests it has are finished; new ones are refused
  void stop();                        // run() returns after the step in flight
  void set_group(GroupState state);   // ends the waits of steps of earlier epochs
  void set_decision(Epoch epoch, const cluster::Decision& decision);
  Snapshot snapshot() const;

 private:
  struct AbortCommand {
    std::vector<RequestId> ids;
  };
  struct ClientGoneCommand {
    uint64_t client;
  };
  struct GrammarCommand {
    Submit submit;
    GrammarResult matcher;
  };
  struct DecisionCommand {
    Epoch epoch;
    cluster::Decision decision;
  };
  using Command = std::variant<Submit, AbortCommand, ClientGoneCommand, GrammarCommand, GroupState, DecisionCommand>;
  struct InFlight {
    exec::Ticket ticket;
    uint64_t group_step = 0;
    bool dummy = false;
  };

  void post(Command command);
  std::deque<Command> take_commands(bool wait);
  void apply(Submit&& submit);
  void apply(AbortCommand&& command);
  void apply(ClientGoneCommand&& command);
  void apply(GrammarCommand&& command);
  void apply(GroupState&& state);
  void apply(DecisionCommand&& command);
  void add(Submit&& submit, std::shared_ptr<sample::GrammarMatcher> grammar);
  bool leaving();
  bool drained() const;
  Status submit_plans();
  Status submit(sched::StepPlan plan);
  bool take_transfer_news();
  Status collect_one();
  void emit(sched::RequestEvent&& event);
  void emit_error(RequestId id, const Error& e);
  void forget(RequestId id);
  void note_first_step(const sched::StepPlan& plan);
  void add_first_token_times(RequestOutput& out);
  void flush(StepId step);
  void announce_idle();
  void publish_snapshot();
  void begin_serving();
  void add_result(const exec::StepResult& result);
  void note_transfers(const kv::TransferCounters& counters);
  void note_experts(const exec::EplbCounts& counts);

  // engine_group.cc
  bool in_group() const { return executor_->info().ep_peer.has_value(); }
  Status run_in_group();
  std::deque<Command> take_group_commands(bool park);
  Status follow_group();
  Status form_group();
  Status keep_transfers();
  Status leave_group();
  Status collect_ready();
  Status collect_group_step(exec::Deadline deadline, bool& ready);
  Status plan_ahead();
  void vote();
  Result<bool> submit_decided();
  bool has_room() const { return static_cast<int>(in_flight_.size()) < options_.max_num_plans; }
  int wanted_microbatches(const sched::StepPlan& plan) const;
  void count_microbatches(const sched::StepPlan& plan);
  bool may_leave();
  void give_up_requests(const std::string& why);

  const EngineOptions options_;
  std::unique_ptr<sched::Scheduler> scheduler_;
  std::unique_ptr<exec::Executor> executor_;
  Deliver deliver_;

  // Engine thread only.
  std::deque<InFlight> in_flight_;
  std::unordered_map<uint64_t, std::vector<RequestOutput>> outbox_;        // by client, of the step being collected
  std::unordered_map<uint64_t, std::unordered_set<uint64_t>> unfinished_;  // client -> serials
  std::unordered_set<RequestId> compiling_;                                // their grammar is with grammars_
  // From taking a request to its first tokens.
  struct Beginning {
    std::chrono::steady_clock::time_point taken;
    std::optional<std::chrono::steady_clock::time_point> first_step;
  };
  std::unordered_map<RequestId, Beginning> beginnings_;
  Load load_;
  std::shared_ptr<const exec::EplbWindow> experts_seen_;  // that experts_ is made of
  std::shared_ptr<const ExpertReport> experts_;           // of load balancing's last window
  StepTimes step_times_{};
  bool idle_announced_ = true;
  bool serving_ = false;

  // Engine thread only, of a group.
  GroupLink group_link_;
  GroupState group_;
  StepVoter voter_;
  int group_size_ = 0;                                               // ranks of the group it is in
  std::optional<sched::StepPlan> planned_;                           // waits for its decision
  std::optional<std::chrono::steady_clock::time_point> planned_at_;  // and nothing else runs since then
  uint64_t fault_epoch_ = 0;                                         // see cluster::GroupPlace
  bool group_left_ = false;                                          // all ranks leave
  std::optional<std::chrono::steady_clock::time_point> drained_at_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Command> mailbox_;  // under mutex_, as the following
  bool draining_ = false;
  bool stopping_ = false;
  bool result_ready_ = false;
  bool transfers_got_on_ = false;  // since the last step that could say how far
  Snapshot snapshot_;

  GrammarWorker grammars_;  // last: its thread posts to the mailbox
};

}  // namespace manta::engine
