// DeepSeek-V3 as a walk over a backend's stages: the model, written once for every device.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "ep/expert_map.h"
#include "ep/expert_transport.h"
#include "model/config.h"
#include "model/overlap.h"
#include "model/stage_clock.h"
#include "model/weights.h"

namespace manta::model {

// Watches the layers' cache rows: a KV connector that loads them just in time or sends them as they are written.
// Called where the stage is called, from the driver's thread; captured steps call it once, at capture.
class LayerHook {
 public:
  virtual ~LayerHook() = default;
  virtual void before_attention(Lane& lane, int layer) = 0;   // rows of earlier tokens must be there afterwards
  virtual void after_cache_write(Lane& lane, int layer) = 0;  // rows of this step's tokens are written
};

// What a driver works with. All of it belongs to the caller and must outlive the driver. The weights may change
// between steps (expert moves), and so may the map's values.
struct DriverParts {
  backend::Backend* backend = nullptr;  // initialised, cache made
  const ModelConfig* config = nullptr;
  Weights* weights = nullptr;
  const ep::ExpertMap* experts = nullptr;          // null for a dense model, and so is the transport
  ep::ExpertTransport* transport = nullptr;        // configured for as many microbatches as there are activations
  std::vector<backend::Activations*> activations;  // one per microbatch in flight, 1 or 2
  StageClock* clock = nullptr;
  LayerHook* hook = nullptr;  // may be null
  // Rows of a microbatch that go through dispatch and combine at once, as the transport was configured; 0 = all.
  int max_tokens_per_round = 0;
};

class LayerDriver {
 public:
  // kInvalidArgument when the parts do not fit each other.
  static Result<std::unique_ptr<LayerDriver>> make(DriverParts parts);

  // One step, 1 or 2 views. All a backend::DriverFn has to call. A microbatch without rows takes part in dispatch and
  // combine only: its peers' rows may need the experts here. Returns at once when the transport reports a fault: the
  // step has failed, but every cache row it wrote is right.
  void run(std::span<const backend::StepView> microbatches);

 private:
  // One layer's parts, looked up once.
  struct Layer {
    backend::LayerWeights* weights = nullptr;
    backend::KvLayer cache;
    int moe_row = -1;  // row of the expert map; -1 dense
  };

  explicit LayerDriver(DriverParts parts);
  void call(const StageCall& call, const backend::StepView& view);
  void call_attention(const StageCall& call, const backend::StepView& view, Lane& lane);
  void call_experts(const StageCall& call, const backend::StepView& view, Lane& lane);
  void call_ends(const StageCall& call, const backend::StepView& view, Lane& lane);
  ep::Routed routed(const StageCall& call, const backend::StepView& view, int first) const;
  int rows_of_round(const backend::StepView& view, int first) const;
  void finish_rounds(const StageCall& call, const backend::StepView& view, Lane& lane);
  // The streams the layer works on: the model's, or the MTP module's.
  backend::Hidden& streams(const StageCall& call);

  DriverParts parts_;
  const backend::ModelShape& shape_;
  std::vector<Layer> layers_;
  StageOrder orders_[2];                  // by number of microbatches - 1
  std::vector<ep::ExpertBatch> batches_;  // by microbatch, between dispatch_finish and combine_start
};

}  // namespace manta::model
