#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "backend/cpu/stages.h"

namespace manta::backend::cpu {

void CpuBackend::dense_mlp(Lane&, const StepView& view, const PackedWeight& norm, const MlpWeights& w, Activations&,
                           Hidden& h) {
  norm_rows(view, h, norm);
  mlp(scratch_.normed, view.num_tokens, w, h.hidden);
}

void CpuBackend::route(Lane&, const StepView& view, int layer, const PackedWeight& norm, const GateWeights& gate,
                       const ep::ExpertMap& map, Activations& act, Hidden& h) {
  for_rows(view.num_tokens, shape().hidden_size / 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      add_and_norm(h, i, values(norm), row(scratch_.normed_f32, i), row_bf16(act.moe_input, i));
    }
  });
  h.residual_valid = true;
  linear(scratch_.normed_f32, view.num_tokens, matrix(gate.weight), scratch_.gate_logits);
  const float* bias = gate.correction_bias ? values(*gate.correction_bias) : nullptr;
  const size_t top_k = shape().num_experts_per_tok;
  for_rows(view.num_tokens, shape().n_routed_experts * 10, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const std::span<int32_t> ids(act.topk_id.as<int32_t>() + i * top_k, top_k);
      routers_[thread].route(row_of(view, layer, i), row(scratch_.gate_logits, i), bias, map, ids,
                             {row(act.topk_weight, i), top_k});
    }
  });
  count_expert_load(layer, map.num_physical, view, act.topk_id);
}

void CpuBackend::shared_expert(Lane&, const StepView& view, const MlpWeights& w, Activations& act) {
  mlp(act.moe_input, view.num_tokens, w, act.shared_out);
}

void CpuBackend::experts(Lane&, const ExpertWeights& weights, ep::ExpertBatch& batch) {
  if (batch.hidden.dtype != caps_.wire_dtype) {
    fault(error(ErrorCode::kInternal, fmt::format("experts got rows of {}: the cpu backend's wire is {}",
                                                  to_string(batch.hidden.dtype), to_string(caps_.wire_dtype))));
    return;
  }
  const bool masked = batch.layout == ep::ExpertLayout::kMasked;
  const int32_t* counts = (masked ? batch.num_rows : batch.row_offsets).as<int32_t>();
  // With peers, more rows may come than a step of ours has: as many at a time as there is scratch for.
  const int64_t capacity = inner_rows(shape().moe_intermediate_size).shape[0];
  int64_t used = 0;
  expert_rows_.clear();
  for (int e = 0; e < static_cast<int>(weights.local.size()); ++e) {
    int64_t at = masked ? e * batch.hidden.shape[1] : counts[e];
    const int64_t end = masked ? at + counts[e] : counts[e + 1];
    while (at < end) {
      const int64_t count = std::min(end - at, capacity - used);
      expert_rows_.push_back({e, static_cast<int>(count), at, used});
      at += count;
      used += count;
      if (used < capacity) continue;
      run_experts(weights, batch);
      expert_rows_.clear();
      used = 0;
    }
  }
  run_experts(weights, batch);
}

// Rows of many experts as two grouped products.
void CpuBackend::run_experts(const ExpertWeights& weights, const ep::ExpertBatch& batch) {
  const int64_t d = shape().hidden_size;
  const Tensor inner = inner_rows(shape().moe_intermediate_size);
  problems_.clear();
  for (const ExpertRows& rows : expert_rows_) {
    GemmProblem p;
    p.weight = &matrix(weights.local[rows.expert].gate_proj);
    p.up = &matrix(weights.local[rows.expert].up_proj);
    p.a = batch.hidden.as<uint16_t>() + rows.first * d;
    p.lda = d;
    p.rows = rows.count;
    p.out_bf16 = row_bf16(inner, rows.first_inner);
    p.ldo = inner.stride[0];
    p.pad_pair = true;
    problems_.push_back(p);
  }
  gemm_->run(problems_);
  problems_.clear();
  for (const ExpertRows& rows : expert_rows_) {
    GemmProblem p;
    p.weight = &matrix(weights.local[rows.expert].down_proj);
    p.a = row_bf16(inner, rows.first_inner);
    p.lda = inner.stride[0];
    p.rows = rows.count;
    p.out_bf16 = batch.output.as<uint16_t>() + rows.first * d;
    p.ldo = d;
    problems_.push_back(p);
  }
  gemm_->run(problems_);
}

void CpuBackend::merge(Lane&, const StepView& view, const Activations& act, Hidden& h) {
  const int d = shape().hidden_size;
  for_rows(view.num_tokens, d / 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (shape().n_shared_experts > 0) {
        kernels_.add(row(act.combined, i), row(act.shared_out, i), d, row(h.hidden, i));
      } else {
        std::memcpy(row(h.hidden, i), row(act.combined, i), sizeof(float) * d);
      }
    }
  });
}

}  // namespace manta::backend::cpu
