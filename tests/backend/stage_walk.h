// The model's stages walked one by one over real weights, with a look at what each left behind. model/ has the driver
// that serves; this one exists so that a wrong number can be traced to the stage and layer that made it.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace manta::backend::testing {

class StageWalk {
 public:
  // After the embedding (layer -1) and after each layer: hidden + residual is the layer's output.
  using Observer = std::function<void(int layer, const StepView& view, const Activations& act)>;

  // Loads the checkpoint in `folder` with its MTP module. Throws std::runtime_error with the error's message.
  StageWalk(std::unique_ptr<Backend> backend, const std::string& folder, Limits limits, int num_blocks, int block_size);

  // One step: plan, every stage, finish; microbatches one after the other. Afterwards view() and act() hold what the
  // step left, act().logits the draft logits when something sampled, else those of the head; head_logits() is called in
  // between.
  StepOutputs step(const StepInputs& inputs);

  Observer observer;
  std::function<void(const StepView& view, const Activations& act)> head_logits;
  // Called instead of mtp_draft.
  std::function<void(const StepView& view, Activations& act)> mtp_logits;

  Backend& backend() { return *backend_; }
  const StepView& view() const { return views_.at(0); }
  Activations& act() { return *act_; }
  const model::Weights& weights() const { return *weights_; }
  const ModelShape& shape() const { return config_.shape; }

 private:
  void forward(const StepView& view);
  void layer(const StepView& view, int layer, Hidden& hidden);

  std::unique_ptr<Backend> backend_;
  model::ModelConfig config_;
  ep::ExpertMap map_;
  std::unique_ptr<model::Weights> weights_;
  std::unique_ptr<Activations> act_;
  std::unique_ptr<ep::ExpertTransport> transport_;
  std::vector<StepView> views_;
};

}  // namespace manta::backend::testing
