// The executor that has a model: a thread with a queue of plans in front of the device of this process.
#pragma once

#include <memory>

#include "base/result.h"
#include "exec/device_model.h"
#include "exec/executor.h"

namespace manta::exec {

// Loads the model, which may take minutes (options.progress tells); ready to submit to when it returns. The connector
// may be null.
Result<std::unique_ptr<Executor>> make_local_executor(const LocalExecutorOptions& options,
                                                      std::unique_ptr<transfer::KvConnectorWorker> connector = nullptr);

}  // namespace manta::exec
