// A checkpoint on a backend, without an executor: steps through model/'s driver, with a look at the logits; or, to
// trace a wrong number to the stage and layer that made it, the stages walked one by one with a look at what each left
// behind.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/driver.h"
#include "model/weights.h"
#include "open_model.h"

namespace manta::backend::testing {

class StageWalk {
 public:
  // After the embedding (layer -1) and after each layer: hidden + residual is the layer's output.
  using Observer = std::function<void(int layer, const StepView& view, const Activations& act)>;

  // Loads the checkpoint in `folder` with its MTP module. Throws std::runtime_error with the error's message.
  ~StageWalk();
  StageWalk(std::unique_ptr<Backend> backend, const std::string& folder, Limits limits, int num_blocks, int block_size);

  // One step: plan, every stage, finish. Afterwards view() and act() hold what microbatch 0 left; act().logits are the
  // draft logits where something sampled.
  StepOutputs step(const StepInputs& inputs);

  // Called once a microbatch has sampled, while act.logits still holds what it sampled from.
  std::function<void(const StepView& view, const Activations& act)> head_logits;
  // Either of these makes step() walk the stages itself, one microbatch after the other, in place of the driver.
  Observer observer;
  std::function<void(const StepView& view, Activations& act)> mtp_logits;  // called instead of mtp_draft

  Backend& backend() { return *model_->backend; }
  const StepView& view() const { return views_.at(0); }
  Activations& act() { return *model_->activations[0]; }
  const model::Weights& weights() const { return *model_->weights; }
  const ModelShape& shape() const { return model_->config.shape; }

 private:
  class LogitsHook;

  void walk(const StepView& view);
  void walk_layer(const StepView& view, int layer, Hidden& hidden, Activations& act);

  std::unique_ptr<OpenModel> model_;
  std::unique_ptr<model::LayerHook> hook_;
  std::unique_ptr<model::LayerDriver> driver_;
  std::vector<StepView> views_;
};

}  // namespace manta::backend::testing
