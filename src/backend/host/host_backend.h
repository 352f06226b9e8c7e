// What every CPU backend shares: everything of seam 2 that is not arithmetic on the model. A backend derives from this
// and adds pack(), make_activations() and the stages from embed to mtp_draft.
//
// One step at a time: plan, run, finish, in that order, from one thread; run() returns when the step is done.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/host/host_memory.h"
#include "backend/host/routing.h"
#include "backend/host/sample_stage.h"
#include "backend/host/slot_table.h"
#include "backend/host/step_builder.h"
#include "backend/host/thread_team.h"

namespace manta::backend::host {

// The buffers of one microbatch; a backend with scratch of its own derives from it and allocates from `memory`.
class HostActivations : public Activations {
 public:
  // activation: dtype of the residual streams, final_hidden and shared_out; wire: of moe_input.
  Status allocate(const ModelShape& shape, const Limits& limits, DType activation, DType wire);
  // What allocate() takes, for the ledger. Of the logits, the rows a step without prompt logprobs can need: the others
  // are address space until a request asks for prompt logprobs.
  static size_t num_bytes(const ModelShape& shape, const Limits& limits, DType activation, DType wire);

  HostMemory memory;
};

class HostBackend : public Backend {
 public:
  explicit HostBackend(int num_threads);
  void simulate_routing(RoutingSimulation simulation) { simulation_ = simulation; }  // before init()
  void share_cache(bool shareable) { shareable_cache_ = shareable; }                 // before make_cache()

  Status init(const ModelShape& shape, const Limits& limits) final;
  Status make_cache(const kv::CacheGeometry& geometry) final;
  KvLayer cache_layer(int layer) final;
  Lane& lane(int microbatch) final;
  Result<std::unique_ptr<ep::ExpertTransport>> make_transport(const ep::TransportOptions& options) override;

  Status plan(const StepInputs& inputs, std::vector<StepView>& microbatches) final;
  Status run(const GraphKey* key, std::span<const StepView> microbatches, const DriverFn& driver) final;
  Result<StepOutputs> finish() final;

  void gather_inputs(Lane&, const StepView&) final;
  void sample(Lane&, const StepView&, Activations&) final;

 protected:
  // The derived part of init(): checks what the backend cannot do, allocates its scratch. shape() and limits() are set.
  virtual Status on_init() = 0;
  // Bytes of the derived backend's own scratch and of all its activations, for workspace_bytes().
  virtual size_t derived_bytes() const = 0;

  size_t workspace_bytes() const final;
  const ModelShape& shape() const { return shape_; }
  const Limits& limits() const { return limits_; }
  ThreadTeam& team() { return team_; }
  int block_size() const { return geometry_.block_size; }
  Router make_router() const { return Router(shape_, simulation_); }  // one per thread
  static Router::Row row_of(const StepView& view, int layer, int64_t i) {
    return {layer, view.positions.as<int32_t>()[i], view.token_ids.as<int32_t>()[i]};
  }

  // mtp_input: the token that follows this row: of the prompt, or what sample() chose. Rows that have none (padding,
  // rejected drafts) get 0; what MTP makes of them is never read.
  static TokenId next_token(const StepView& view, int row) {
    return std::max(view.next_token_ids.as<int32_t>()[row], 0);
  }
  // mtp_draft: turns draft logits, row i for sampling slice i, into the slots' drafts.
  void store_drafts(const StepView& view, const Tensor& logits);
  // route: counts the rows of topk_id [T, top_k] per physical expert; -1 does not count. `layer` indexes the map.
  void count_expert_load(int layer, int num_physical, const StepView& view, const Tensor& topk_id);
  // A stage that cannot go on: finish() returns the first fault of the step.
  void fault(Error error);

 private:
  ThreadTeam team_;
  RoutingSimulation simulation_ = RoutingSimulation::kNone;
  ModelShape shape_;
  Limits limits_;
  bool initialised_ = false;
  bool shareable_cache_ = false;
  kv::CacheGeometry geometry_;
  HostMemory cache_memory_;
  std::vector<KvLayer> cache_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::optional<SlotTable> slots_;
  std::optional<StepBuilder> builder_;
  std::optional<SampleStage> sample_stage_;
  std::vector<ep::LayerLoad> expert_load_;  // by layer of the map
  std::optional<Error> fault_;
  bool in_flight_ = false;
};

}  // namespace manta::backend::host
