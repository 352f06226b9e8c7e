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
  cudaEventRecord(l.forked.get(), l.stream);
  beside(l, l.forked, [&] {
    rope_queries({l.scratch.q, l.scratch.queries, positions, cos_, sin_, t, heads, nope, rope, latent}, l.stream);
  });
  const BlockGemm absorb = {.a = l.scratch.q,
                            .a_stride = heads * head,
                            .n = latent,
                            .k = nope,
                            .c = l.scratch.queries,
                            .c_stride = heads * width,
                            .m = t,
                            .num_batches = heads,
                            .a_batch = head,
                            .w_batch = int64_t{latent} * nope,
                            .c_batch = width};
  const KvUpWeight& up = kv_up(w.kv_b_proj);
  const GemmWeight key_up = {up.key_up, nullptr, up.key_up_maps};
  block_gemm(absorb, &key_up, l.stream);
  join(l);
}

void CudaBackend::attn_attend(Lane& lane, const StepView& view, const AttnWeights& w, const KvLayer& cache,
                              Activations&, Hidden& h) {
  auto& l = static_cast<StageLane&>(lane);
  const ModelShape& s = shape_;
  const int t = view.num_tokens, heads = s.num_attention_heads, v = s.v_head_dim, latent = s.kv_lora_rank;
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
  a.num_rows = t;
  a.heads = heads;
  a.rope = s.qk_rope_head_dim;
  a.latent = latent;
  if (plans_attention()) {
    a.items = l.scratch.mla_items;
    a.row_pieces = l.scratch.mla_pieces;
    a.max_extra_items = num_multiprocessors_;
  }
  a.partial_out = l.scratch.partial_out;
  a.partial_lse = l.scratch.partial_lse;
  a.out = l.scratch.latent_out;
  mla_attention(a, l.stream);
  const BlockGemm values_up = {.a = l.scratch.latent_out,
                               .a_stride = heads * latent,
                               .n = v,
                               .k = latent,
                               .c = l.scratch.attn_out,
                               .c_stride = heads * v,
                               .m = t,
                               .num_batches = heads,
                               .a_batch = latent,
                               .w_batch = int64_t{v} * latent,
                               .c_batch = v};
  const KvUpWeight& up = kv_up(w.kv_b_proj);
  const GemmWeight value_up = {up.value_up, nullptr, up.value_up_maps};
  block_gemm(values_up, &value_up, l.stream);
  const MatrixWeight& o = matrix(w.o_proj);
  Operand in = {l.scratch.attn_out, heads * v};
  if (takes_fp8(o)) in = quantized(l, l.scratch.attn_out, heads * v, t, heads * v);
  linear(l, in, {&o}, t, {h.hidden.data, s.hidden_size});
}

}  // namespace manta::backend::cuda
