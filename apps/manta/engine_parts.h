// Builds what one rank consists of, from its settings: executor (real or fake), scheduler, and what front-ends are
// told.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "base/settings.h"
#include "engine/engine.h"
#include "model/progress.h"
#include "transfer/kv_connector.h"

namespace manta {

struct EngineParts {
  engine::EngineOptions options;
  std::unique_ptr<transfer::KvConnectorScheduler> kv_connector;  // may be null; the scheduler's: outlives it
  std::unique_ptr<sched::Scheduler> scheduler;
  std::unique_ptr<exec::Executor> executor;
  engine::MakeGrammarCompiler grammars;
  engine::Welcome welcome;
  std::string summary;  // JSON object: device, memory ledger, cache blocks; for the start-up summary
};

// progress: of loading the weights; called from the thread that loads.
Result<EngineParts> make_engine_parts(const Settings& settings, int rank, model::ProgressFn progress);
// Ranks that step together because each has a share of the experts; 0: every engine for itself.
int expert_group_size(const Settings& settings);
std::string host_name();

}  // namespace manta
