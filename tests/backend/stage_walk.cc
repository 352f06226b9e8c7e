#include "stage_walk.h"

#include "model/weight_list.h"

namespace manta::backend::testing {

// The MTP layer's attention is the first thing after sample() that the driver tells of.
class StageWalk::LogitsHook : public model::LayerHook {
 public:
  explicit LogitsHook(StageWalk& walk) : walk_(walk) {}
  void before_attention(Lane& lane, int layer) override {
    if (layer != walk_.shape().num_hidden_layers || !walk_.head_logits) return;
    const OpenModel& model = *walk_.model_;
    for (const StepView& view : walk_.views_) {
      if (&model.backend->lane(view.microbatch) == &lane) walk_.head_logits(view, *model.activations[view.microbatch]);
    }
  }
  void after_cache_write(Lane&, int) override {}

 private:
  StageWalk& walk_;
};

StageWalk::StageWalk(std::unique_ptr<Backend> backend, const std::string& folder, Limits limits, int num_blocks,
                     int block_size) {
  limits.num_speculative_tokens = 1;
  model_ =
      open_model(std::move(backend), folder, {.limits = limits, .num_blocks = num_blocks, .block_size = block_size});
  hook_ = std::make_unique<LogitsHook>(*this);
  driver_ = model_->make_driver(hook_.get());
}

StageWalk::~StageWalk() = default;

StepOutputs StageWalk::step(const StepInputs& inputs) {
  check(model_->backend->plan(inputs, views_));
  check(model_->backend->run(nullptr, views_, [this](std::span<const StepView> views) {
    if (!observer && !mtp_logits) return driver_->run(views);
    for (const StepView& view : views) walk(view);
  }));
  return take(model_->backend->finish());
}

void StageWalk::walk_layer(const StepView& view, int layer, Hidden& hidden, Activations& act) {
  Lane& lane = model_->backend->lane(view.microbatch);
  const LayerWeights& w = model_->weights->layers[layer];
  KvLayer cache = model_->backend->cache_layer(layer);
  model_->backend->attn_project(lane, view, w.attn, hidden, cache, act);
  model_->backend->attn_attend(lane, view, w.attn, cache, act, hidden);
  const int moe = model::moe_row(model_->config.shape, layer);
  if (moe < 0) {
    model_->backend->dense_mlp(lane, view, *w.post_attn_norm, w.dense_mlp, act, hidden);
    return;
  }
  model_->backend->route(lane, view, moe, *w.post_attn_norm, w.gate, model_->map, act, hidden);
  const int n = view.num_tokens;
  ep::DispatchHandle& handle = model_->transport->handle(view.microbatch);
  ep::ExpertBatch batch;
  model_->transport->dispatch_start(lane, handle,
                                    {.layer = layer,
                                     .hidden = rows(act.moe_input, 0, n),
                                     .topk_id = rows(act.topk_id, 0, n),
                                     .topk_weight = rows(act.topk_weight, 0, n)});
  model_->transport->dispatch_finish(lane, handle, batch);
  model_->backend->experts(lane, w.experts, batch);
  model_->transport->combine_start(lane, handle, batch);
  model_->transport->combine_finish(lane, handle, rows(act.combined, 0, n));
  model_->backend->shared_expert(lane, view, w.shared_expert, act);
  model_->backend->merge(lane, view, act, hidden);
}

void StageWalk::walk(const StepView& view) {
  Activations& act = *model_->activations[view.microbatch];
  Lane& lane = model_->backend->lane(view.microbatch);
  const ModelShape& s = model_->config.shape;
  model_->backend->gather_inputs(lane, view);
  model_->backend->embed(lane, view, *model_->weights->embedding, act.hidden);
  if (observer) observer(-1, view, act);
  for (int l = 0; l < s.num_hidden_layers; ++l) {
    walk_layer(view, l, act.hidden, act);
    if (observer) observer(l, view, act);
  }
  model_->backend->head(lane, view, model_->weights->head, act, act.hidden);
  model_->backend->sample(lane, view, act);
  if (head_logits) head_logits(view, act);
  model_->backend->mtp_input(lane, view, *model_->weights->embedding, model_->weights->mtp, act);
  walk_layer(view, s.num_hidden_layers, act.mtp, act);
  if (mtp_logits) {
    mtp_logits(view, act);
  } else {
    model_->backend->mtp_draft(lane, view, *model_->weights->mtp.norm, model_->weights->head, act);
  }
}

}  // namespace manta::backend::testing
