#include "stage_walk.h"

#include <stdexcept>

#include "model/loader.h"

namespace manta::backend::testing {
namespace {

void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error().message);
}

template <typename T>
T take(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message);
  return std::move(result).value();
}

}  // namespace

StageWalk::StageWalk(std::unique_ptr<Backend> backend, const std::string& folder, Limits limits, int num_blocks,
                     int block_size)
    : backend_(std::move(backend)) {
  config_ = take(model::load_config(folder, ""));
  check(model::enable_mtp(config_));
  limits.num_speculative_tokens = 1;
  const ModelShape& s = config_.shape;
  check(backend_->init(s, limits));
  const int num_moe = model::num_moe_rows(s);
  map_ = take(ep::linear_expert_map(num_moe, s.n_routed_experts, 0, 1, {}));
  const auto source = take(model::open_checkpoint(folder, config_));
  weights_ = take(model::load_weights(config_, *source, *backend_, {.experts = {.map = &map_}}));
  check(backend_->make_cache({.num_layers = s.num_layers(),
                              .num_blocks = num_blocks,
                              .block_size = block_size,
                              .kv_lora_rank = s.kv_lora_rank,
                              .qk_rope_head_dim = s.qk_rope_head_dim,
                              .dtype = backend_->caps().cache_dtype}));
  for (int i = 0; i < limits.num_microbatches; ++i) acts_.push_back(take(backend_->make_activations()));
  transport_ = take(backend_->make_transport({}));
  check(transport_->configure({},
                              {.hidden_size = s.hidden_size,
                               .num_experts_per_tok = s.num_experts_per_tok,
                               .num_physical_experts = map_.num_physical,
                               .num_local_experts = map_.num_physical,
                               .wire_dtype = backend_->caps().wire_dtype},
                              limits.max_num_tokens, limits.num_microbatches));
  make_driver();
}

StageWalk::~StageWalk() = default;

// The MTP layer's attention is the first thing after sample() that the driver tells of.
class StageWalk::LogitsHook : public model::LayerHook {
 public:
  explicit LogitsHook(StageWalk& walk) : walk_(walk) {}
  void before_attention(Lane& lane, int layer) override {
    if (layer != walk_.shape().num_hidden_layers || !walk_.head_logits) return;
    for (const StepView& view : walk_.views_) {
      if (&walk_.backend_->lane(view.microbatch) == &lane) walk_.head_logits(view, *walk_.acts_[view.microbatch]);
    }
  }
  void after_cache_write(Lane&, int) override {}

 private:
  StageWalk& walk_;
};

void StageWalk::make_driver() {
  hook_ = std::make_unique<LogitsHook>(*this);
  model::DriverParts parts = {.backend = backend_.get(),
                              .config = &config_,
                              .weights = weights_.get(),
                              .experts = &map_,
                              .transport = transport_.get(),
                              .clock = &clock_,
                              .hook = hook_.get()};
  for (const auto& act : acts_) parts.activations.push_back(act.get());
  driver_ = take(model::LayerDriver::make(std::move(parts)));
}

StepOutputs StageWalk::step(const StepInputs& inputs) {
  check(backend_->plan(inputs, views_));
  check(backend_->run(nullptr, views_, [this](std::span<const StepView> views) {
    if (!observer && !mtp_logits) return driver_->run(views);
    for (const StepView& view : views) walk(view);
  }));
  return take(backend_->finish());
}

void StageWalk::walk_layer(const StepView& view, int layer, Hidden& hidden, Activations& act) {
  Lane& lane = backend_->lane(view.microbatch);
  const LayerWeights& w = weights_->layers[layer];
  KvLayer cache = backend_->cache_layer(layer);
  backend_->attn_project(lane, view, w.attn, hidden, cache, act);
  backend_->attn_attend(lane, view, w.attn, cache, act, hidden);
  const int moe = model::moe_row(config_.shape, layer);
  if (moe < 0) {
    backend_->dense_mlp(lane, view, *w.post_attn_norm, w.dense_mlp, act, hidden);
    return;
  }
  backend_->route(lane, view, moe, *w.post_attn_norm, w.gate, map_, act, hidden);
  const int n = view.num_tokens;
  ep::DispatchHandle& handle = transport_->handle(view.microbatch);
  ep::ExpertBatch batch;
  transport_->dispatch_start(lane, handle,
                             {.layer = layer,
                              .hidden = rows(act.moe_input, 0, n),
                              .topk_id = rows(act.topk_id, 0, n),
                              .topk_weight = rows(act.topk_weight, 0, n)});
  transport_->dispatch_finish(lane, handle, batch);
  backend_->experts(lane, w.experts, batch);
  transport_->combine_start(lane, handle, batch);
  transport_->combine_finish(lane, handle, rows(act.combined, 0, n));
  backend_->shared_expert(lane, view, w.shared_expert, act);
  backend_->merge(lane, view, act, hidden);
}

void StageWalk::walk(const StepView& view) {
  Activations& act = *acts_[view.microbatch];
  Lane& lane = backend_->lane(view.microbatch);
  const ModelShape& s = config_.shape;
  backend_->gather_inputs(lane, view);
  backend_->embed(lane, view, *weights_->embedding, act.hidden);
  if (observer) observer(-1, view, act);
  for (int l = 0; l < s.num_hidden_layers; ++l) {
    walk_layer(view, l, act.hidden, act);
    if (observer) observer(l, view, act);
  }
  backend_->head(lane, view, weights_->head, act, act.hidden);
  backend_->sample(lane, view, act);
  if (head_logits) head_logits(view, act);
  backend_->mtp_input(lane, view, *weights_->embedding, weights_->mtp, act);
  walk_layer(view, s.num_hidden_layers, act.mtp, act);
  if (mtp_logits) {
    mtp_logits(view, act);
  } else {
    backend_->mtp_draft(lane, view, *weights_->mtp.norm, weights_->head, act);
  }
}

}  // namespace manta::backend::testing
