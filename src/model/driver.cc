#include "model/driver.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>

#include "model/weight_list.h"

namespace manta::model {

using backend::StepView;

namespace {

bool is_collective(Stage stage) {
  return stage == Stage::kDispatchStart || stage == Stage::kDispatchFinish || stage == Stage::kExperts ||
         stage == Stage::kCombineStart || stage == Stage::kCombineFinish;
}

StageClock::Part part_of(Stage stage) {
  switch (stage) {
    case Stage::kDispatchStart:
    case Stage::kDispatchFinish: return StageClock::Part::kDispatch;
    case Stage::kCombineStart:
    case Stage::kCombineFinish: return StageClock::Part::kCombine;
    case Stage::kSample: return StageClock::Part::kSample;
    default: return StageClock::Part::kForward;
  }
}

Status check(const DriverParts& parts) {
  const auto bad = [](std::string message) { return error(ErrorCode::kInvalidArgument, "layer driver: " + message); };
  const backend::ModelShape& shape = parts.config->shape;
  if (parts.weights->layers.size() != static_cast<size_t>(shape.num_layers())) {
    return bad(fmt::format("weights of {} layers, the model has {}", parts.weights->layers.size(), shape.num_layers()));
  }
  if (parts.activations.empty() || parts.activations.size() > 2) {
    return bad(fmt::format("{} microbatches in flight: 1 or 2", parts.activations.size()));
  }
  const int moe_rows = num_moe_rows(shape);
  if (moe_rows > 0 && (!parts.transport || !parts.experts || parts.experts->num_layers != moe_rows)) {
    return bad(fmt::format("the model has {} MoE layers and needs a transport and a map of them", moe_rows));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<LayerDriver>> LayerDriver::make(DriverParts parts) {
  assert(parts.backend && parts.config && parts.weights && parts.clock);
  MANTA_TRY(check(parts));
  return std::unique_ptr<LayerDriver>(new LayerDriver(std::move(parts)));
}

LayerDriver::LayerDriver(DriverParts parts)
    : parts_(std::move(parts)), shape_(parts_.config->shape), batches_(parts_.activations.size()) {
  for (int i = 0; i < shape_.num_layers(); ++i) {
    layers_.push_back({&parts_.weights->layers[i], parts_.backend->cache_layer(i), moe_row(shape_, i)});
  }
  orders_[0] = make_stage_order(shape_, 1);
  if (parts_.activations.size() == 2) orders_[1] = make_stage_order(shape_, 2);
}

void LayerDriver::run(std::span<const StepView> microbatches) {
  assert(!microbatches.empty() && microbatches.size() <= parts_.activations.size());
  for (const StageCall& stage_call : orders_[microbatches.size() - 1]) {
    const StepView& view = microbatches[stage_call.microbatch];
    if (view.num_tokens == 0 && !is_collective(stage_call.stage)) continue;
    parts_.clock->enter(stage_call.layer, to_string(stage_call.stage), part_of(stage_call.stage));
    call(stage_call, view);
    // A peer is gone: what came back is no sum of experts. Nothing of it may reach the cache.
    const bool received = stage_call.stage == Stage::kDispatchFinish || stage_call.stage == Stage::kCombineFinish;
    if (received && !parts_.transport->status().ok()) return;
  }
}

void LayerDriver::call(const StageCall& c, const StepView& view) {
  Lane& lane = parts_.backend->lane(c.microbatch);
  switch (c.stage) {
    case Stage::kAttnProject:
    case Stage::kAttnAttend:
    case Stage::kDenseMlp: return call_attention(c, view, lane);
    case Stage::kRoute:
    case Stage::kDispatchStart:
    case Stage::kSharedExpert:
    case Stage::kDispatchFinish:
    case Stage::kExperts:
    case Stage::kCombineStart:
    case Stage::kCombineFinish:
    case Stage::kMerge: return call_experts(c, view, lane);
    default: return call_ends(c, view, lane);
  }
}

void LayerDriver::call_attention(const StageCall& c, const StepView& view, Lane& lane) {
  Layer& layer = layers_[c.layer];
  backend::Activations& act = *parts_.activations[c.microbatch];
  backend::Backend& backend = *parts_.backend;
  if (c.stage == Stage::kAttnProject) {
    if (parts_.hook) parts_.hook->before_attention(lane, c.layer);
    backend.attn_project(lane, view, layer.weights->attn, streams(c), layer.cache, act);
    if (parts_.hook) parts_.hook->after_cache_write(lane, c.layer);
  } else if (c.stage == Stage::kAttnAttend) {
    backend.attn_attend(lane, view, layer.weights->attn, layer.cache, act, streams(c));
  } else {
    backend.dense_mlp(lane, view, *layer.weights->post_attn_norm, layer.weights->dense_mlp, act, streams(c));
  }
}

void LayerDriver::call_experts(const StageCall& c, const StepView& view, Lane& lane) {
  const Layer& layer = layers_[c.layer];
  const backend::LayerWeights& w = *layer.weights;
  backend::Activations& act = *parts_.activations[c.microbatch];
  backend::Backend& backend = *parts_.backend;
  ep::ExpertTransport& transport = *parts_.transport;
  ep::DispatchHandle& handle = transport.handle(c.microbatch);
  ep::ExpertBatch& batch = batches_[c.microbatch];
  switch (c.stage) {
    case Stage::kRoute:
      backend.route(lane, view, layer.moe_row, *w.post_attn_norm, w.gate, *parts_.experts, act, streams(c));
      break;
    case Stage::kDispatchStart: transport.dispatch_start(lane, handle, routed(c, view, 0)); break;
    case Stage::kSharedExpert: backend.shared_expert(lane, view, w.shared_expert, act); break;
    case Stage::kDispatchFinish: transport.dispatch_finish(lane, handle, batch); break;
    case Stage::kExperts: backend.experts(lane, w.experts, batch); break;
    case Stage::kCombineStart: transport.combine_start(lane, handle, batch); break;
    case Stage::kCombineFinish: finish_rounds(c, view, lane); break;
    default: backend.merge(lane, view, act, streams(c)); break;
  }
}

void LayerDriver::call_ends(const StageCall& c, const StepView& view, Lane& lane) {
  const Weights& w = *parts_.weights;
  backend::Activations& act = *parts_.activations[c.microbatch];
  backend::Backend& backend = *parts_.backend;
  switch (c.stage) {
    case Stage::kGatherInputs: backend.gather_inputs(lane, view); break;
    case Stage::kEmbed: backend.embed(lane, view, *w.embedding, act.hidden); break;
    case Stage::kHead: backend.head(lane, view, w.head, act, act.hidden); break;
    case Stage::kSample: backend.sample(lane, view, act); break;
    case Stage::kMtpInput: backend.mtp_input(lane, view, *w.embedding, w.mtp, act); break;
    default: backend.mtp_draft(lane, view, *w.mtp.norm, w.head, act); break;
  }
}

int LayerDriver::rows_of_round(const StepView& view, int first) const {
  const int left = view.num_tokens - first;
  return parts_.max_tokens_per_round > 0 ? std::min(left, parts_.max_tokens_per_round) : left;
}

ep::Routed LayerDriver::routed(const StageCall& c, const StepView& view, int first) const {
  const backend::Activations& act = *parts_.activations[c.microbatch];
  const int n = rows_of_round(view, first);
  ep::Routed routed;
  routed.layer = layers_[c.layer].moe_row;
  routed.hidden = rows(act.moe_input, first, n);
  routed.topk_id = rows(act.topk_id, first, n);
  routed.topk_weight = rows(act.topk_weight, first, n);
  routed.more = first + n < view.num_tokens;
  return routed;
}

// The first round's combine, then the rounds that any rank still has rows for, each whole: they are for long prompts,
// whose compute is long too, so they are not overlapped.
void LayerDriver::finish_rounds(const StageCall& c, const StepView& view, Lane& lane) {
  ep::ExpertTransport& transport = *parts_.transport;
  ep::DispatchHandle& handle = transport.handle(c.microbatch);
  ep::ExpertBatch& batch = batches_[c.microbatch];
  const Tensor& combined = parts_.activations[c.microbatch]->combined;
  int first = 0;
  while (true) {
    const int n = rows_of_round(view, first);
    transport.combine_finish(lane, handle, rows(combined, first, n));
    if (!batch.more) return;
    first += n;
    transport.dispatch_start(lane, handle, routed(c, view, first));
    transport.dispatch_finish(lane, handle, batch);
    parts_.backend->experts(lane, layers_[c.layer].weights->experts, batch);
    transport.combine_start(lane, handle, batch);
  }
}

backend::Hidden& LayerDriver::streams(const StageCall& c) {
  backend::Activations& act = *parts_.activations[c.microbatch];
  return c.layer < shape_.num_hidden_layers ? act.hidden : act.mtp;
}

}  // namespace manta::model
