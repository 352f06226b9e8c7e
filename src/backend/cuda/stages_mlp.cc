#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/moe/route.h"

namespace manta::backend::cuda {

CudaBackend::Operand CudaBackend::quantized(StageLane& l, const __nv_bfloat16* x, int64_t stride, int num_rows, int d) {
  quantize_rows({.x = x,
                 .x_stride = stride,
                 .num_rows = num_rows,
                 .d = d,
                 .ue8m0 = shape_.fp8_scale_ue8m0,
                 .q = l.scratch.quantized,
                 .scale = l.scratch.scales,
                 .scale_stride = scale_rows(num_rows)},
                l.stream);
  return {x, stride, l.scratch.quantized, l.scratch.scales};
}

void CudaBackend::linear(StageLane& l, const Operand& in, std::initializer_list<const MatrixWeight*> weights,
                         int num_rows, const Output& out) {
  const MatrixWeight& w = **weights.begin();
  BlockGemm g;
  g.a = in.x;
  g.a_stride = in.stride;
  if (takes_fp8(w)) {
    g.a = in.q;
    g.a_scale = in.scale;
    g.a_scale_stride = scale_rows(num_rows);
    g.a_stride = w.k;
  }
  g.w_fp8 = w.is_fp8;
  g.n = w.n;
  g.k = w.k;
  g.num_parts = static_cast<int>(weights.size());
  g.c = out.data;
  g.c_f32 = out.f32;
  g.c_stride = out.stride;
  g.m = num_rows;
  GemmWeight views[2];
  int i = 0;
  for (const MatrixWeight* weight : weights) views[i++] = weight->view();
  block_gemm(g, views, l.stream);
}

void CudaBackend::add_norm(StageLane& l, Hidden& h, int num_rows, const PackedWeight& norm, bool fp8, bool low,
                           __nv_bfloat16* out) {
  const int d = shape_.hidden_size;
  AddRmsNorm a = {.hidden = static_cast<const __nv_bfloat16*>(h.hidden.data),
                  .hidden_stride = d,
                  .residual = static_cast<__nv_bfloat16*>(h.residual.data),
                  .add_residual = h.residual_valid,
                  .gain = values(norm),
                  .eps = shape_.rms_norm_eps,
                  .num_rows = num_rows,
                  .d = d,
                  .out = out,
                  .out_low = low ? l.scratch.normed_low : nullptr,
                  .out_stride = d,
                  .ue8m0 = shape_.fp8_scale_ue8m0};
  if (fp8) {
    a.out_fp8 = l.scratch.quantized;
    a.out_scale = l.scratch.scales;
    a.scale_stride = scale_rows(num_rows);
    a.quantize_out = low;  // the router's: its other consumers see out alone
  }
  add_rms_norm(a, l.stream);
  h.residual_valid = true;
}

void CudaBackend::mlp(StageLane& l, const Operand& in, const MlpWeights& w, int num_rows, __nv_bfloat16* out) {
  const MatrixWeight &gate = matrix(w.gate_proj), &down = matrix(w.down_proj);
  linear(l, in, {&gate, &matrix(w.up_proj)}, num_rows, {l.scratch.gate_up, 2 * gate.n});
  SiluMultiply silu = {.in = l.scratch.gate_up, .num_rows = num_rows, .n = gate.n, .ue8m0 = shape_.fp8_scale_ue8m0};
  if (takes_fp8(down)) {
    silu.out_fp8 = l.scratch.quantized_inner;
    silu.out_scale = l.scratch.inner_scales;
    silu.scale_stride = scale_rows(num_rows);
  } else {
    silu.out = l.scratch.inner;
  }
  silu_multiply(silu, l.stream);
  linear(l, {l.scratch.inner, gate.n, l.scratch.quantized_inner, l.scratch.inner_scales}, {&down}, num_rows,
         {out, shape_.hidden_size});
}

void CudaBackend::dense_mlp(Lane& lane, const StepView& view, const PackedWeight& norm, const MlpWeights& w,
                            Activations&, Hidden& h) {
  auto& l = static_cast<StageLane&>(lane);
  add_norm(l, h, view.num_tokens, norm, takes_fp8(matrix(w.gate_proj)), false, l.scratch.normed);
  mlp(l, {l.scratch.normed, shape_.hidden_size, l.scratch.quantized, l.scratch.scales}, w, view.num_tokens,
      static_cast<__nv_bfloat16*>(h.hidden.data));
}

// The router works on the norm in two bf16 terms (value and what rounding took), so that it decides as float32 would
// and still runs on tensor cores.
void CudaBackend::route(Lane& lane, const StepView& view, int layer, const PackedWeight& norm, const GateWeights& gate,
                        const ep::ExpertMap& map, Activations& act, Hidden& h) {
  auto& l = static_cast<StageLane&>(lane);
  const int t = view.num_tokens, experts = shape_.n_routed_experts;
  if (map_ != &map) {
    const Status status = attach_expert_map(map);
    if (!status.ok()) {
      fault(status.error());
      return;
    }
  }
  auto* moe_input = static_cast<__nv_bfloat16*>(act.moe_input.data);
  const bool shared = shape_.n_shared_experts > 0;
  with_shared_scratch(l, [&] { add_norm(l, h, t, norm, shared && quantize_, true, moe_input); });
  cudaEventRecord(l.shared.input_made.get(), l.stream);
  l.shared.has_input = shared;
  // Few columns and a long k: k in pieces, each with logits of its own, which choose_experts adds up in order.
  const int d = shape_.hidden_size, pieces = gate_pieces(d);
  BlockGemm g = {.a = l.scratch.normed_low,
                 .a_stride = d,
                 .n = experts,
                 .k = d / pieces,
                 .c = l.scratch.gate_logits,
                 .c_f32 = true,
                 .c_stride = experts,
                 .m = t,
                 .num_batches = pieces,
                 .a_batch = d / pieces,
                 .w_batch = d / pieces,
                 .c_batch = int64_t{t} * experts,
                 .w_stride = d};
  const GemmWeight weight = matrix(gate.weight).view();
  block_gemm(g, &weight, l.stream);
  g.a = moe_input;
  g.c = l.scratch.gate_logits + pieces * g.c_batch;
  block_gemm(g, &weight, l.stream);
  choose_experts({.logits = l.scratch.gate_logits,
                  .num_partials = 2 * pieces,
                  .partial_stride = g.c_batch,
                  .bias = gate.correction_bias ? values(*gate.correction_bias) : nullptr,
                  .positions = view.positions.as<int32_t>(),
                  .logical_to_physical = logical_to_physical_ + int64_t{layer} * map.num_logical * map.max_replicas,
                  .replica_count = replica_count_ + int64_t{layer} * map.num_logical,
                  .max_replicas = map.max_replicas,
                  .num_rows = t,
                  .num_experts = experts,
                  .top_k = shape_.num_experts_per_tok,
                  .n_group = shape_.n_group,
                  .topk_group = shape_.topk_group,
                  .sigmoid = shape_.scoring_func == ScoringFunc::kSigmoid,
                  .top2_sum = shape_.group_limited_by_top2_sum,
                  .norm_topk_prob = shape_.norm_topk_prob,
                  .scaling = shape_.routed_scaling_factor,
                  .ids = act.topk_id.as<int32_t>(),
                  .weights = act.topk_weight.as<float>(),
                  .load = load_ + int64_t{layer} * map.num_physical},
                 l.stream);
}

// Once, in the first step that routes: from now on plan() keeps the device's copy up to date.
Status CudaBackend::attach_expert_map(const ep::ExpertMap& map) {
  map_memory_.clear();
  const auto take = [&](int32_t*& out, size_t n, const std::vector<int32_t>* from) -> Status {
    MANTA_ASSIGN(void* data, map_memory_.allocate_bytes("the expert map", n * sizeof(int32_t)));
    out = static_cast<int32_t*>(data);
    if (from == nullptr) return {};
    return check_cuda(cudaMemcpy(data, from->data(), n * sizeof(int32_t), cudaMemcpyHostToDevice), "the expert map");
  };
  shadow_ = map;
  MANTA_TRY(take(logical_to_physical_, map.logical_to_physical.size(), &map.logical_to_physical));
  MANTA_TRY(take(replica_count_, map.logical_replica_count.size(), &map.logical_replica_count));
  MANTA_TRY(take(load_, static_cast<size_t>(map.num_layers) * map.num_physical, nullptr));
  MANTA_TRY(check_cuda(cudaDeviceSynchronize(), "the expert map"));
  map_ = &map;
  return {};
}

// Beside the router, what the transport sends and the experts: merge waits for it. It needs the norm alone, which left
// its input in FP8 too.
void CudaBackend::shared_expert(Lane& lane, const StepView& view, const MlpWeights& w, Activations& act) {
  auto& l = static_cast<StageLane&>(lane);
  with_shared_scratch(l, [&] {
    const int d = shape_.hidden_size;
    const auto* x = static_cast<const __nv_bfloat16*>(act.moe_input.data);
    Operand in = {x, d, l.scratch.quantized, l.scratch.scales};
    if (!l.shared.has_input) {  // called without route
      if (takes_fp8(matrix(w.gate_proj))) in = quantized(l, x, d, view.num_tokens, d);
      cudaEventRecord(l.shared.input_made.get(), l.stream);
    }
    l.shared.has_input = false;
    beside(l, l.shared.input_made,
           [&] { mlp(l, in, w, view.num_tokens, static_cast<__nv_bfloat16*>(act.shared_out.data)); });
  });
}

// What one pass works on: rows [first_row, + num_rows) of the batch, or of each of some experts.
struct CudaBackend::ExpertWindow {
  int first_expert = 0, num_experts = 0;
  int first_row = 0, num_rows = 0;
};

void CudaBackend::experts(Lane& lane, const ExpertWeights& weights, ep::ExpertBatch& batch) {
  auto& l = static_cast<StageLane&>(lane);
  const auto num_local = static_cast<int>(weights.local.size());
  const auto most = static_cast<int>(inner_rows());
  if (batch.hidden.dtype != DType::kBF16 || 2 * num_local > kMaxGroupedWeights) {
    fault(error(ErrorCode::kUnimplemented,
                fmt::format("{} experts with rows of {}: cuda takes at most {}, BF16", num_local,
                            to_string(batch.hidden.dtype), kMaxGroupedWeights / 2)));
    return;
  }
  if (num_local == 0 || batch.max_rows == 0) return;
  const bool masked = batch.layout == ep::ExpertLayout::kMasked;
  const int experts_per_pass = masked ? std::clamp(most / batch.max_rows, 1, num_local) : num_local;
  for (int e = 0; e < num_local; e += experts_per_pass) {
    for (int row = 0; row < batch.max_rows; row += most) {
      expert_window(l, weights, batch,
                    {e, std::min(experts_per_pass, num_local - e), row, std::min(most, batch.max_rows - row)});
    }
  }
}

void CudaBackend::expert_window(StageLane& l, const ExpertWeights& weights, const ep::ExpertBatch& batch,
                                const ExpertWindow& window) {
  const int d = shape_.hidden_size, n = matrix(weights.local[0].gate_proj).n;
  const bool masked = batch.layout == ep::ExpertLayout::kMasked;
  const int64_t plane = masked ? batch.hidden.shape[1] : 0;
  const auto* hidden = static_cast<const __nv_bfloat16*>(batch.hidden.data) + window.first_expert * plane * d;
  auto* output = static_cast<__nv_bfloat16*>(batch.output.data) + window.first_expert * plane * d;
  const int64_t inner_rows = int64_t{window.num_rows} * (masked ? window.num_experts : 1);
  std::vector<GemmWeight> gate_up, down;
  for (int e = window.first_expert; e < window.first_expert + window.num_experts; ++e) {
    gate_up.push_back(matrix(weights.local[e].gate_proj).view());
    gate_up.push_back(matrix(weights.local[e].up_proj).view());
    down.push_back(matrix(weights.local[e].down_proj).view());
  }
  const MatrixWeight &w_gate = matrix(weights.local[0].gate_proj), &w_down = matrix(weights.local[0].down_proj);
  const WindowRows rows = {.first = window.first_row,
                           .plane_rows = masked ? window.num_rows : 0,
                           .counts = masked ? batch.num_rows.as<int32_t>() + window.first_expert
                                            : batch.row_offsets.as<int32_t>() + window.num_experts};
  BlockGemm g;
  g.groups.counts = masked ? batch.num_rows.as<int32_t>() + window.first_expert : batch.row_offsets.as<int32_t>();
  g.groups.masked = masked;
  g.groups.num_groups = window.num_experts;
  g.groups.plane = plane;
  g.groups.window_begin = window.first_row;
  g.groups.window_rows = window.num_rows;
  g.w_fp8 = w_gate.is_fp8;
  g.n = n;
  g.k = d;
  g.num_parts = 2;
  g.a_scale_stride = scale_rows(inner_rows);
  g.a = hidden;
  g.a_stride = d;
  g.a_is_batch = true;
  if (takes_fp8(w_gate)) {
    quantize_rows({.x = hidden,
                   .x_stride = d,
                   .num_rows = inner_rows,
                   .d = d,
                   .ue8m0 = shape_.fp8_scale_ue8m0,
                   .window = rows,
                   .plane = plane,
                   .q = l.scratch.quantized,
                   .scale = l.scratch.scales,
                   .scale_stride = scale_rows(inner_rows)},
                  l.stream);
    g.a = l.scratch.quantized;
    g.a_scale = l.scratch.scales;
    g.a_is_batch = false;
  }
  g.c = l.scratch.gate_up;
  g.c_stride = 2 * n;
  grouped_block_gemm(g, gate_up.data(), l.stream);

  SiluMultiply silu = {
      .in = l.scratch.gate_up, .num_rows = inner_rows, .n = n, .window = rows, .ue8m0 = shape_.fp8_scale_ue8m0};
  g.a = l.scratch.inner;
  g.a_scale = nullptr;
  if (takes_fp8(w_down)) {
    silu.out_fp8 = l.scratch.quantized_inner;
    silu.out_scale = l.scratch.inner_scales;
    silu.scale_stride = scale_rows(inner_rows);
    g.a = l.scratch.quantized_inner;
    g.a_scale = l.scratch.inner_scales;
  } else {
    silu.out = l.scratch.inner;
  }
  silu_multiply(silu, l.stream);

  g.a_stride = n;
  g.a_is_batch = false;
  g.w_fp8 = w_down.is_fp8;
  g.n = d;
  g.k = n;
  g.num_parts = 1;
  g.c = output;
  g.c_stride = d;
  g.c_is_batch = true;
  grouped_block_gemm(g, down.data(), l.stream);
}

void CudaBackend::merge(Lane& lane, const StepView& view, const Activations& act, Hidden& h) {
  auto& l = static_cast<StageLane&>(lane);
  const bool shared = shape_.n_shared_experts > 0;
  if (shared) join(l);
  merge_rows(act.combined.as<float>(), shared ? static_cast<const __nv_bfloat16*>(act.shared_out.data) : nullptr,
             static_cast<__nv_bfloat16*>(h.hidden.data), int64_t{view.num_tokens} * shape_.hidden_size, l.stream);
}

}  // namespace manta::backend::cuda
