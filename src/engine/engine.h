// One DP rank's loop: takes requests, asks the scheduler for a plan, submits it, collects, hands out tokens. It runs on
// a thread of its own; everything else talks to it through its mailbox and never waits for it.
//
// Per step and front-end connection there is one Outputs value. A request ends exactly once, with a finish reason or
// an error, unless the front-end that owns it is gone.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "engine/grammar_worker.h"
#include "engine/messages.h"
#include "exec/executor.h"
#include "sched/scheduler.h"

namespace manta::engine {

inline constexpr uint64_t kAllClients = 0;

struct EngineOptions {
  int rank = 0;
  std::chrono::milliseconds step_deadline{60000};  // a step that takes longer has failed
  int max_num_plans = 1;  // in flight: 2 with async scheduling, never above the executor's max_in_flight
};

// A picture of the engine for heartbeats and metrics, consistent as of the last step.
struct Snapshot {
  Load load;
  exec::StageStamp where;
  bool busy = false;
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

  // ---- any thread; none of these waits ----
  void submit(Submit submit);
  void abort(std::vector<RequestId> ids);
  void client_gone(uint64_t client);  // aborts everything it submitted
  void drain();                       // run() returns once the requests it has are finished; new ones are refused
  void stop();                        // run() returns after the step in flight
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
  using Command = std::variant<Submit, AbortCommand, ClientGoneCommand, GrammarCommand>;

  void post(Command command);
  std::deque<Command> take_commands(bool wait);
  void apply(Submit&& submit);
  void apply(AbortCommand&& command);
  void apply(ClientGoneCommand&& command);
  void apply(GrammarCommand&& command);
  void add(Submit&& submit, std::shared_ptr<sample::GrammarMatcher> grammar);
  bool leaving();
  Status submit_plans();
  Status collect_one();
  void emit(sched::RequestEvent&& event);
  void emit_error(RequestId id, const Error& e);
  void forget(RequestId id);
  void flush(StepId step);
  void announce_idle();
  void publish_snapshot();

  const EngineOptions options_;
  std::unique_ptr<sched::Scheduler> scheduler_;
  std::unique_ptr<exec::Executor> executor_;
  Deliver deliver_;

  // Engine thread only.
  std::deque<exec::Ticket> in_flight_;
  std::unordered_map<uint64_t, std::vector<RequestOutput>> outbox_;        // by client, of the step being collected
  std::unordered_map<uint64_t, std::unordered_set<uint64_t>> unfinished_;  // client -> serials
  std::unordered_set<RequestId> compiling_;                                // their grammar is with grammars_
  Load load_;
  bool idle_announced_ = true;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Command> mailbox_;  // under mutex_, as the following
  bool draining_ = false;
  bool stopping_ = false;
  Snapshot snapshot_;

  GrammarWorker grammars_;  // last: its thread posts to the mailbox
};

}  // namespace manta::engine
