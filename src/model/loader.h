// Reads a rank's weights, in parallel, and hands each to the backend to pack. Only the experts of this rank are read.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "base/result.h"
#include "model/config.h"
#include "model/progress.h"
#include "model/weight_list.h"
#include "model/weight_source.h"
#include "model/weights.h"

namespace manta::model {

struct LoadOptions {
  ExpertShare experts;  // which physical experts this rank holds
  int num_threads = 0;  // 0 = all cores this process may use
  ProgressFn progress;  // called from the calling thread, at the end too; may be empty
};

// Every tensor is checked (name, dtype, shape, scales) before the first is read; values are checked to be finite.
// Errors name file, tensor, what was expected and what was found. The first fault ends the load.
Result<std::unique_ptr<Weights>> load_weights(const ModelConfig& config, const WeightSource& source,
                                              backend::Backend& backend, const LoadOptions& options);

// One logical expert, for moving experts while serving.
Result<backend::MlpWeights> load_expert(const ModelConfig& config, const WeightSource& source,
                                        backend::Backend& backend, int layer, int expert);

}  // namespace manta::model
