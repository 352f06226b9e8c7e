#include "backend/cuda/cuda_backend.h"

namespace manta::backend::cuda {

void CudaBackend::attn_project(Lane& lane, const StepView& view, const AttnWeights& w, Hidden& h, KvLayer& cache,
                               Activations&) {
  auto& l = static_cast<StageLane&>(lane);
  const ModelShape& s = shape_;
  const int t = view.num_tokens, heads = s.num_attention_heads, nope = s.qk_nope_head_dim, rope = s.qk_rope_head_dim;
  const int latent = s.kv_lora_rank, width = latent + rope, head = nope + rope;
  const MatrixWeight& first = matrix(s.q_lora_rank > 0 ? w.q_a_proj : w.q_proj);
  const bool fp8 = takes_fp8(first) || takes_fp8(matrix(w.kv_a_proj));
  add_norm(l, h, t, *w.input_norm, fp8, false, l.scratch.normed);
  const Operand normed = {l.scratch.normed, s.hidden_size, l.scratch.quantized, l.scratch.scales};
  const int32_t* positions = view.positions.as<int32_t>();
  // The new cache rows, beside the queries.
  cudaEventRecord(l.forked.get(), l.stream);
  beside(l, l.forked, [&] {
    linear(l, normed, {&matrix(w.kv_a_proj)}, t, {l.scratch.kv_a, width, true});
    write_latents({l.scratch.kv_a, width, values(*w.kv_a_norm), positions, view.slot_mapping.as<int64_t>(), cos_, sin_,
                   static_cast<__nv_bfloat16*>(cache.rows.data), s.rms_norm_eps, t, rope, latent},
                  l.stream);
  });
  if (s.q_lora_rank > 0) {
    linear(l, normed, {&matrix(w.q_a_proj)}, t, {l.scratch.q_a, s.q_lora_rank});
    const MatrixWeight& q_b = matrix(w.q_b_proj);
    AddRmsNorm norm = {.hidden = l.scratch.q_a,
                       .hidden_stride = s.q_lora_rank,
                       .gain = values(*w.q_a_norm),
                       .eps = s.rms_norm_eps,
                       .num_rows = t,
                       .d = s.q_lora_rank,
                       .ue8m0 = s.fp8_scale_ue8m0};
    if (takes_fp8(q_b)) {
      norm.out_fp8 = l.scratch.quantized_inner;  // the other one may still be read beside
      norm.out_scale = l.scratch.inner_scales;
      norm.scale_stride = scale_rows(t);
    } else {
      norm.out = l.scratch.q_a;
      norm.out_stride = s.q_lora_rank;
    }
    add_rms_norm(norm, l.stream);
    linear(l, {l.scratch.q_a, s.q_lora_rank, l.scratch.quantized_inner, l.scratch.inner_scales}, {&q_b}, t,
           {l.scratch.q, heads * head});
  } else {
    linear(l, normed, {&matrix(w.q_proj)}, t, {l.scratch.q, heads * head});
  }
  rotate_and_absorb(l, view, w);
  join(l);
}

// Queries of rows that attend absorbed go into the latent space; those of the others are rotated where they stand.
void CudaBackend::rotate_and_absorb(StageLane& l, const StepView& view, const AttnWeights& w) {
  const ModelShape& s = shape_;
  const int heads = s.num_attention_heads, nope = s.qk_nope_head_dim, rope = s.qk_rope_head_dim;
  const int64_t latent = s.kv_lora_rank, width = latent + rope, head = nope + rope;
  const PrefillPlan& plan = buffers_[view.microbatch]->prefill();
  const auto rotate = [&](const RowRun& run, __nv_bfloat16* to, int64_t to_row, int before) {
    rope_queries({l.scratch.q + run.begin * heads * head, to + run.begin * to_row,
                  view.positions.as<int32_t>() + run.begin, cos_, sin_, run.end - run.begin, heads, nope, rope, before},
                 l.stream);
  };
  cudaEventRecord(l.forked.get(), l.stream);
  beside(l, l.forked, [&] {
    for (const RowRun& run : plan.absorbed) rotate(run, l.scratch.queries, heads * width, s.kv_lora_rank);
    for (const RowRun& run : plan.expanded) rotate(run, l.scratch.q, heads * head, nope);
  });
  const KvUpWeight& up = kv_up(w.kv_b_proj);
  const GemmWeight key_up = {up.key_up, nullptr, up.key_up_maps};
  for (const RowRun& run : plan.absorbed) {
    const BlockGemm absorb = {.a = l.scratch.q + run.begin * heads * head,
                              .a_stride = heads * head,
                              .n = s.kv_lora_rank,
                              .k = nope,
                              .c = l.scratch.queries + run.begin * heads * width,
                              .c_stride = heads * width,
                              .m = run.end - run.begin,
                              .num_batches = heads,
                              .a_batch = head,
                              .w_batch = latent * nope,
                              .c_batch = width};
    block_gemm(absorb, &key_up, l.stream);
  }
}

void CudaBackend::attend_absorbed(StageLane& l, const StepView& view, const AttnWeights& w, const KvLayer& cache) {
  const ModelShape& s = shape_;
  const int heads = s.num_attention_heads, v = s.v_head_dim, latent = s.kv_lora_rank;
  const PrefillPlan& plan = buffers_[view.microbatch]->prefill();
  MlaAttention a;
  a.queries = l.scratch.queries;
  a.cache = static_cast<const __nv_bfloat16*>(cache.rows.data);
  a.cache_rows = cache.rows.shape[0] * cache.rows.shape[1];
  a.positions = view.positions.as<int32_t>();
  a.row_req = view.row_req.as<int32_t>();
  a.req_slot = view.slots.as<int32_t>();
  a.block_tables = view.block_tables.as<int32_t>();
  a.max_blocks = view.block_tables.stride[0];
  a.block_size = geometry_.block_size;
  a.softmax_scale = s.softmax_scale;
  a.num_rows = view.num_tokens;
  a.heads = heads;
  a.rope = s.qk_rope_head_dim;
  a.latent = latent;
  a.num_planned = plan.num_absorbed;
  if (plans_attention()) {
    a.items = l.scratch.mla_items;
    a.row_pieces = l.scratch.mla_pieces;
    a.max_extra_items = num_multiprocessors_;
  }
  a.partial_out = l.scratch.partial_out;
  a.partial_lse = l.scratch.partial_lse;
  a.out = l.scratch.latent_out;
  mla_attention(a, l.stream);
  const KvUpWeight& up = kv_up(w.kv_b_proj);
  const GemmWeight value_up = {up.value_up, nullptr, up.value_up_maps};
  for (const RowRun& run : plan.absorbed) {
    const BlockGemm values_up = {.a = l.scratch.latent_out + int64_t{run.begin} * heads * latent,
                                 .a_stride = heads * latent,
                                 .n = v,
                                 .k = latent,
                                 .c = l.scratch.attn_out + int64_t{run.begin} * heads * v,
                                 .c_stride = heads * v,
                                 .m = run.end - run.begin,
                                 .num_batches = heads,
                                 .a_batch = latent,
                                 .w_batch = int64_t{v} * latent,
                                 .c_batch = v};
    block_gemm(values_up, &value_up, l.stream);
  }
}

int CudaBackend::max_prefill_rows() const {
  const ModelShape& s = shape_;
  if (!prefill_takes(s.qk_nope_head_dim, s.qk_rope_head_dim, s.v_head_dim, s.kv_lora_rank)) return 0;
  if (geometry_.block_size > 0 && !plans_attention()) return 0;
  const int64_t t = limits_.max_num_tokens, heads = s.num_attention_heads, latent = s.kv_lora_rank;
  const int64_t width = latent + s.qk_rope_head_dim, elem = sizeof(__nv_bfloat16);
  // In queries: keys, latents, the log-sum-exp of every row and head, a counter. In latent_out: values.
  const int64_t left = t * heads * (width * elem - sizeof(float)) - 256;
  const int64_t rows =
      std::min(left / (elem * (heads * s.qk_nope_head_dim + width)), t * latent / s.v_head_dim) / kPrefillTile;
  return static_cast<int>(std::max<int64_t>(rows, 0) * kPrefillTile);
}

void CudaBackend::attend_passes(StageLane& l, const StepView& view, const AttnWeights& w, const KvLayer& cache) {
  const ModelShape& s = shape_;
  const int64_t heads = s.num_attention_heads;
  const StepBuffers& buffers = *buffers_[view.microbatch];
  const KvUpWeight& up = kv_up(w.kv_b_proj);
  for (const PrefillPass& pass : buffers.prefill().passes) {
    PrefillPassLaunch p;
    p.cache = static_cast<const __nv_bfloat16*>(cache.rows.data);
    p.block_tables = view.block_tables.as<int32_t>();
    p.max_blocks = view.block_tables.stride[0];
    p.block_size = geometry_.block_size;
    p.segments = buffers.segments() + pass.first_segment;
    p.num_segments = pass.num_segments;
    p.num_rows = pass.num_rows;
    p.key_up = up.key_up;
    p.value_up = up.value_up;
    p.heads = static_cast<int>(heads);
    p.q = l.scratch.q;
    p.num_q_rows = view.num_tokens;
    p.items = buffers.items() + pass.first_item;
    p.num_items = pass.num_items;
    p.softmax_scale = s.softmax_scale;
    p.out = l.scratch.attn_out;
    p.keys = l.scratch.queries;
    p.values = l.scratch.latent_out;
    p.latents = p.keys + heads * pass.num_rows * s.qk_nope_head_dim;
    // At the end, where no pass's keys reach.
    const int64_t row_bytes = heads * (s.kv_lora_rank + s.qk_rope_head_dim) * sizeof(__nv_bfloat16);
    p.lse = reinterpret_cast<float*>(reinterpret_cast<char*>(l.scratch.queries) + limits_.max_num_tokens * row_bytes) -
            limits_.max_num_tokens * heads;
    p.next_item = reinterpret_cast<int32_t*>(p.lse) - 1;
    gather_latents(p, l.stream);
    expand_latents(p, l.stream);
    attend_expanded(p, l.stream);
  }
}

void CudaBackend::attn_attend(Lane& lane, const StepView& view, const AttnWeights& w, const KvLayer& cache,
                              Activations&, Hidden& h) {
  auto& l = static_cast<StageLane&>(lane);
  const ModelShape& s = shape_;
  const int t = view.num_tokens, heads = s.num_attention_heads, v = s.v_head_dim;
  if (buffers_[view.microbatch]->prefill().num_absorbed > 0) attend_absorbed(l, view, w, cache);
  attend_passes(l, view, w, cache);
  const MatrixWeight& o = matrix(w.o_proj);
  Operand in = {l.scratch.attn_out, heads * v};
  if (takes_fp8(o)) in = quantized(l, l.scratch.attn_out, heads * v, t, heads * v);
  linear(l, in, {&o}, t, {h.hidden.data, s.hidden_size});
}

}  // namespace manta::backend::cuda
