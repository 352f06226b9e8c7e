#include <algorithm>

#include "backend/cpu/stages.h"

namespace manta::backend::cpu {

void CpuBackend::attn_project(Lane&, const StepView& view, const AttnWeights& w, Hidden& h, KvLayer& cache,
                              Activations& activations) {
  auto& act = static_cast<CpuActivations&>(activations);
  norm_rows(view, h, *w.input_norm);
  const bool compressed = shape().q_lora_rank > 0;
  GemmProblem down[2];
  for (GemmProblem& p : down) {
    p.a = scratch_.normed.data;
    p.lda = scratch_.normed.stride[0];
    p.rows = view.num_tokens;
  }
  down[0].weight = &matrix(w.kv_a_proj);
  down[0].out_f32 = scratch_.kv_a.as<float>();
  down[0].ldo = scratch_.kv_a.stride[0];
  down[1].weight = &matrix(compressed ? w.q_a_proj : w.q_proj);
  down[1].out_f32 = (compressed ? scratch_.q_a : scratch_.q).as<float>();
  down[1].ldo = (compressed ? scratch_.q_a : scratch_.q).stride[0];
  gemm_->run(down);
  finish_latents(view, w, cache);
  if (compressed) linear(scratch_.q_a_normed, view.num_tokens, matrix(w.q_b_proj), scratch_.q);
  choose_forms(view);
  finish_queries(view, act);
  const RowRange all{0, 0, view.num_tokens};
  absorb_queries(unabsorbed_.empty() ? std::span(&all, 1) : std::span<const RowRange>(absorbed_),
                 static_cast<const KvUpWeight&>(*w.kv_b_proj), act);
}

// Norms of the compressed query and latent; the latent row with its rotated key goes to the cache.
void CpuBackend::finish_latents(const StepView& view, const AttnWeights& w, KvLayer& cache) {
  const ModelShape& s = shape();
  const int64_t width = s.kv_lora_rank + s.qk_rope_head_dim;
  for_rows(view.num_tokens, (s.q_lora_rank + width) / 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (s.q_lora_rank > 0) {
        kernels_.add_rmsnorm(row(scratch_.q_a, i), nullptr, values(*w.q_a_norm), s.q_lora_rank, s.rms_norm_eps, nullptr,
                             row_bf16(scratch_.q_a_normed, i));
      }
      const int64_t to = view.slot_mapping.as<int64_t>()[i];
      if (to < 0) continue;
      float* kv = row(scratch_.kv_a, i);
      kernels_.add_rmsnorm(kv, nullptr, values(*w.kv_a_norm), s.kv_lora_rank, s.rms_norm_eps, kv, nullptr);
      rope_->rotate(kv + s.kv_lora_rank, view.positions.as<int32_t>()[i]);
      kernels_.to_bf16(kv, static_cast<int>(width), cache.rows.as<uint16_t>() + to * width);
    }
  });
}

void CpuBackend::choose_forms(const StepView& view) {
  absorbed_.clear();
  unabsorbed_.clear();
  const int32_t* cu_rows = view.cu_rows.as<int32_t>();
  for (int r = 0; r < view.num_reqs; ++r) {
    const RowRange range{r, cu_rows[r], cu_rows[r + 1] - cu_rows[r]};
    if (range.count == 0) continue;
    const int32_t* positions = view.positions.as<int32_t>() + range.first;
    const int num_keys = 1 + *std::max_element(positions, positions + range.count);
    const bool separate = unabsorbed_form_ && unabsorbed_form_->pays(range.count, num_keys);
    (separate ? unabsorbed_ : absorbed_).push_back(range);
  }
}

// Rotates the queries' rope parts into act.q and rounds the rest for absorb_queries.
void CpuBackend::finish_queries(const StepView& view, CpuActivations& act) {
  const ModelShape& s = shape();
  const int heads = s.num_attention_heads, nope = s.qk_nope_head_dim, rope = s.qk_rope_head_dim;
  const int64_t width = s.kv_lora_rank + rope;
  for_rows(view.num_tokens, int64_t{heads} * (nope + 4 * rope) / 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int position = std::max(view.positions.as<int32_t>()[i], 0);
      for (int head = 0; head < heads; ++head) {
        float* q = row(scratch_.q, i) + head * (nope + rope);
        uint16_t* q_nope = row_bf16(scratch_.q_nope, i) + head * even(nope);
        kernels_.to_bf16(q, nope, q_nope);
        if (nope % 2 != 0) q_nope[nope] = 0;
        rope_->rotate(q + nope, position);
        kernels_.to_bf16(q + nope, rope, row_bf16(act.q, i) + head * width + s.kv_lora_rank);
        if (!unabsorbed_.empty()) {
          kernels_.to_bf16(q, nope + rope, row_bf16(act.q_separate, i) + head * (nope + rope));
        }
      }
    }
  });
}

// A product for every head and range of rows. Where all rows are absorbed (always, but for the unabsorbed form) they
// make one range.
template <typename Fill>
void CpuBackend::for_heads(std::span<const RowRange> ranges, Fill&& fill) {
  problems_.clear();
  for (int head = 0; head < shape().num_attention_heads; ++head) {
    for (const RowRange& range : ranges) {
      GemmProblem p;
      p.rows = range.count;
      fill(p, head, int64_t{range.first});
      problems_.push_back(p);
    }
  }
  gemm_->run(problems_);
}

void CpuBackend::absorb_queries(std::span<const RowRange> ranges, const KvUpWeight& w, CpuActivations& act) {
  const ModelShape& s = shape();
  for_heads(ranges, [&](GemmProblem& p, int head, int64_t first) {
    p.weight = &w.key_up[head];
    p.a = row_bf16(scratch_.q_nope, first) + head * even(s.qk_nope_head_dim);
    p.lda = scratch_.q_nope.stride[0];
    p.out_bf16 = row_bf16(act.q, first) + int64_t{head} * (s.kv_lora_rank + s.qk_rope_head_dim);
    p.ldo = act.q.stride[0];
  });
}

void CpuBackend::attend_absorbed(const StepView& view, std::span<const RowRange> ranges, const KvUpWeight& kv_up,
                                 const KvLayer& cache, CpuActivations& act) {
  const ModelShape& s = shape();
  const int64_t latent = even(s.kv_lora_rank);
  const PagedLatents source(view, cache);
  attention_->attend(view, {.ranges = absorbed_,
                            .source = &source,
                            .num_heads = s.num_attention_heads,
                            .q = act.q.as<uint16_t>(),
                            .q_row = act.q.stride[0],
                            .out = scratch_.latent_out.as<uint16_t>(),
                            .out_row = scratch_.latent_out.stride[0],
                            .out_head = latent});
  for_heads(ranges, [&](GemmProblem& p, int head, int64_t first) {
    p.weight = &kv_up.value_up[head];
    p.a = row_bf16(scratch_.latent_out, first) + head * latent;
    p.lda = scratch_.latent_out.stride[0];
    p.out_bf16 = row_bf16(scratch_.attn_out, first) + int64_t{head} * s.v_head_dim;
    p.ldo = scratch_.attn_out.stride[0];
  });
}

void CpuBackend::attn_attend(Lane&, const StepView& view, const AttnWeights& w, const KvLayer& cache,
                             Activations& activations, Hidden& h) {
  auto& act = static_cast<CpuActivations&>(activations);
  const auto& kv_up = static_cast<const KvUpWeight&>(*w.kv_b_proj);
  choose_forms(view);
  const int used = view.num_reqs > 0 ? view.cu_rows.as<int32_t>()[view.num_reqs] : 0;
  const RowRange all{0, 0, used};
  attend_absorbed(view, unabsorbed_.empty() ? std::span(&all, 1) : std::span<const RowRange>(absorbed_), kv_up, cache,
                  act);
  for (const RowRange& range : unabsorbed_) {
    unabsorbed_form_->attend(view, range, cache, kv_up, act.q_separate.as<uint16_t>(), scratch_.attn_out.as<uint16_t>(),
                             scratch_.attn_out.stride[0], *gemm_);
  }
  const int64_t values = int64_t{shape().num_attention_heads} * shape().v_head_dim;
  for (int i = 0; i < view.num_tokens; ++i) {  // padding rows, and the pad of an odd row
    uint16_t* row = row_bf16(scratch_.attn_out, i);
    if (i >= used) std::fill_n(row, values, uint16_t{0});
    if (values % 2 != 0) row[values] = 0;
  }
  linear(scratch_.attn_out, view.num_tokens, matrix(w.o_proj), h.hidden);
}

}  // namespace manta::backend::cpu
