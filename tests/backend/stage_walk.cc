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
  act_ = take(backend_->make_activations());
  transport_ = take(backend_->make_transport("loopback"));
  check(transport_->configure({},
                              {.hidden_size = s.hidden_size,
                               .num_experts_per_tok = s.num_experts_per_tok,
                               .num_physical_experts = map_.num_physical,
                               .num_local_experts = map_.num_physical,
                               .wire_dtype = backend_->caps().wire_dtype},
                              limits.max_num_tokens, 1));
}

StepOutputs StageWalk::step(const StepInputs& inputs) {
  check(backend_->plan(inputs, views_));
  check(backend_->run(nullptr, views_, [this](std::span<const StepView> views) {
    for (const StepView& view : views) forward(view);
  }));
  return take(backend_->finish());
}

void StageWalk::layer(const StepView& view, int layer, Hidden& hidden) {
  Lane& lane = backend_->lane(0);
  const LayerWeights& w = weights_->layers[layer];
  KvLayer cache = backend_->cache_layer(layer);
  backend_->attn_project(lane, view, w.attn, hidden, cache, *act_);
  backend_->attn_attend(lane, view, w.attn, cache, *act_, hidden);
  const int moe = model::moe_row(config_.shape, layer);
  if (moe < 0) {
    backend_->dense_mlp(lane, view, *w.post_attn_norm, w.dense_mlp, *act_, hidden);
    return;
  }
  backend_->route(lane, view, moe, *w.post_attn_norm, w.gate, map_, *act_, hidden);
  const int n = view.num_tokens;
  ep::DispatchHandle& handle = transport_->handle(0);
  ep::ExpertBatch batch;
  transport_->dispatch_start(lane, handle,
                             {.layer = layer,
                              .hidden = rows(act_->moe_input, 0, n),
                              .topk_id = rows(act_->topk_id, 0, n),
                              .topk_weight = rows(act_->topk_weight, 0, n)});
  transport_->dispatch_finish(lane, handle, batch);
  backend_->experts(lane, w.experts, batch);
  transport_->combine_start(lane, handle, batch);
  transport_->combine_finish(lane, handle, rows(act_->combined, 0, n));
  backend_->shared_expert(lane, view, w.shared_expert, *act_);
  backend_->merge(lane, view, *act_, hidden);
}

void StageWalk::forward(const StepView& view) {
  Lane& lane = backend_->lane(0);
  const ModelShape& s = config_.shape;
  backend_->gather_inputs(lane, view);
  backend_->embed(lane, view, *weights_->embedding, act_->hidden);
  if (observer) observer(-1, view, *act_);
  for (int l = 0; l < s.num_hidden_layers; ++l) {
    layer(view, l, act_->hidden);
    if (observer) observer(l, view, *act_);
  }
  backend_->head(lane, view, weights_->head, *act_, act_->hidden);
  if (head_logits) head_logits(view, *act_);
  backend_->sample(lane, view, *act_);
  backend_->mtp_input(lane, view, *weights_->embedding, weights_->mtp, *act_);
  layer(view, s.num_hidden_layers, act_->mtp);
  if (mtp_logits) {
    mtp_logits(view, *act_);
  } else {
    backend_->mtp_draft(lane, view, *weights_->mtp.norm, weights_->head, *act_);
  }
}

}  // namespace manta::backend::testing
