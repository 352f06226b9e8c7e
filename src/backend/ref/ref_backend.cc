#include "backend/ref/ref_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "backend/host/float_formats.h"
#include "backend/host/host_backend.h"
#include "backend/host/rope.h"
#include "backend/host/routing.h"
#include "backend/ref/attention.h"
#include "backend/ref/loops.h"
#include "backend/ref/ref_weights.h"

namespace manta::backend::ref {
namespace {

constexpr int kBlock = Attention::kMaxRows;  // rows that one piece of work takes through a stage

struct RefActivations : host::HostActivations {
  Tensor queries;   // [T, Attention::query_size()]
  Tensor attn_out;  // [T, H * v]
};

struct ThreadScratch {
  Attention::Scratch attention;
  host::Router router;
  std::vector<float> x, y, z, quantized;  // [kBlock, widest row of any stage]
};

float* row(const Tensor& t, int64_t i) {
  return t.as<float>() + i * t.stride[0];
}

int64_t widest_row(const ModelShape& s) {
  const int64_t heads = s.num_attention_heads;
  return std::max<int64_t>({2 * s.hidden_size, s.q_lora_rank, heads * (s.qk_nope_head_dim + s.qk_rope_head_dim),
                            s.kv_lora_rank + s.qk_rope_head_dim, heads * s.v_head_dim, s.intermediate_size,
                            s.moe_intermediate_size * std::max(s.n_shared_experts, 1), s.n_routed_experts});
}

class RefBackend : public host::HostBackend {
 public:
  RefBackend(int num_threads, bool quantize, bool absorbed)
      : HostBackend(num_threads), quantize_(quantize), absorbed_(absorbed) {
    caps_.name = "ref";
    caps_.description = fmt::format("ref ({} threads, float32{}{})", team().num_threads(),
                                    quantize ? ", dynamic FP8 activations" : "", absorbed ? "" : ", unabsorbed");
  }

  const Caps& caps() const override { return caps_; }
  Result<PackedWeightPtr> pack(const WeightView& weight, WeightRole role) override {
    return pack_ref_weight(weight, role, shape());
  }
  Result<std::unique_ptr<Activations>> make_activations() override;

  void embed(Lane&, const StepView&, const PackedWeight& embedding, Hidden& out) override;
  void attn_project(Lane&, const StepView&, const AttnWeights&, Hidden&, KvLayer&, Activations&) override;
  void attn_attend(Lane&, const StepView&, const AttnWeights&, const KvLayer&, Activations&, Hidden&) override;
  void dense_mlp(Lane&, const StepView&, const PackedWeight& norm, const MlpWeights&, Activations&, Hidden&) override;
  void route(Lane&, const StepView&, int layer, const PackedWeight& norm, const GateWeights&, const ep::ExpertMap&,
             Activations&, Hidden&) override;
  void shared_expert(Lane&, const StepView&, const MlpWeights&, Activations&) override;
  void experts(Lane&, const ExpertWeights&, ep::ExpertBatch&) override;
  void merge(Lane&, const StepView&, const Activations&, Hidden&) override;
  void head(Lane&, const StepView&, const HeadWeights&, Activations&, Hidden&) override;
  void mtp_input(Lane&, const StepView&, const PackedWeight& embedding, const MtpWeights&, Activations&) override;
  void mtp_draft(Lane&, const StepView&, const PackedWeight& norm, const HeadWeights&, Activations&) override;

 protected:
  Status on_init() override;
  size_t derived_bytes() const override;

 private:
  // body(first row, number of rows, scratch) for blocks of at most kBlock of the first num_rows rows.
  template <typename Body>
  void for_row_blocks(int64_t num_rows, Body&& body) {
    team().parallel_for(num_rows, kBlock, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t first = begin; first < end; first += kBlock) {  // one thread alone gets all rows as one piece
        body(first, static_cast<int>(std::min<int64_t>(kBlock, end - first)), *scratch_[thread]);
      }
    });
  }

  // out [n, w.out] = x [n, w.in] w; x is quantised first where that is asked for.
  void linear(const float* x, int64_t stride, int n, const RefWeight& w, float* out, ThreadScratch& s) const;
  // out [n, D] = down(silu(gate(x)) * up(x))
  void mlp(const float* x, int64_t stride, int n, const MlpWeights& w, float* out, ThreadScratch& s) const;
  // residual += hidden, or = hidden at the first stage; out [n, D] = norm(residual).
  void add_and_norm(const Hidden& h, int64_t first, int n, const RefWeight& norm, float* out) const;
  void project_queries(const StepView& view, const AttnWeights& w, int64_t first, int n, RefActivations& act,
                       ThreadScratch& s) const;
  void project_latents(const StepView& view, const AttnWeights& w, int64_t first, int n, const KvLayer& cache,
                       ThreadScratch& s) const;
  void attend_request(const StepView& view, int request, int64_t first, int n, const AttnWeights& w,
                      const KvLayer& cache, RefActivations& act, ThreadScratch& s) const;
  void expert_rows(const MlpWeights& w, const ep::ExpertBatch& batch, int64_t first, int n, ThreadScratch& s) const;
  void logits_of(const Tensor& normed, const int32_t* rows, int num_rows, const RefWeight& head, const Tensor& logits);

  const bool quantize_;
  const bool absorbed_;
  Caps caps_;
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<host::RopeTable> rope_;
  std::vector<std::unique_ptr<ThreadScratch>> scratch_;  // by thread
  std::vector<int64_t> expert_blocks_;                   // experts(): blocks of rows before each local expert
};

Status RefBackend::on_init() {
  const ModelShape& s = shape();
  attention_ = std::make_unique<Attention>(s, absorbed_);
  rope_ = std::make_unique<host::RopeTable>(s, limits().max_model_len);
  scratch_.clear();
  const size_t size = static_cast<size_t>(kBlock) * widest_row(s);
  for (int i = 0; i < team().num_threads(); ++i) {
    scratch_.push_back(std::make_unique<ThreadScratch>(
        ThreadScratch{attention_->make_scratch(), make_router(), std::vector<float>(size), std::vector<float>(size),
                      std::vector<float>(size), std::vector<float>(size)}));
  }
  expert_blocks_.reserve(s.n_routed_experts + 1);
  return {};
}

size_t RefBackend::derived_bytes() const {
  if (scratch_.empty()) return 0;
  const ThreadScratch& t = *scratch_[0];
  const auto& a = t.attention;
  const size_t per_thread = 4 * t.x.size() + a.rows.size() + a.transposed.size() + a.keys.size() + a.values.size() +
                            a.scores.size() + a.sums.size() + a.max.size() + a.total.size();
  const size_t per_row = attention_->query_size() + shape().num_attention_heads * shape().v_head_dim;
  const size_t activations = host::HostActivations::num_bytes(shape(), limits(), DType::kF32, DType::kF32) +
                             limits().max_num_tokens * per_row * sizeof(float);
  return per_thread * sizeof(float) * scratch_.size() + activations * limits().num_microbatches;
}

Result<std::unique_ptr<Activations>> RefBackend::make_activations() {
  auto act = std::make_unique<RefActivations>();
  MANTA_TRY(act->allocate(shape(), limits(), DType::kF32, DType::kF32));
  const int64_t t = limits().max_num_tokens;
  MANTA_ASSIGN(act->queries, act->memory.allocate("queries", DType::kF32, {t, attention_->query_size()}));
  MANTA_ASSIGN(act->attn_out, act->memory.allocate("attention outputs", DType::kF32,
                                                   {t, int64_t{shape().num_attention_heads} * shape().v_head_dim}));
  return std::unique_ptr<Activations>(std::move(act));
}

void RefBackend::linear(const float* x, int64_t stride, int n, const RefWeight& w, float* out, ThreadScratch& s) const {
  if (quantize_ && w.is_fp8) {
    for (int i = 0; i < n; ++i) {
      for (int64_t k = 0; k < w.in; k += host::kQuantGroup) {
        host::quantize_group(x + i * stride + k, static_cast<int>(std::min<int64_t>(host::kQuantGroup, w.in - k)),
                             shape().fp8_scale_ue8m0, &s.quantized[i * w.in + k]);
      }
    }
    x = s.quantized.data();
    stride = w.in;
  }
  std::fill_n(out, n * w.out, 0.0f);
  multiply_add(x, stride, w.data.data(), w.out, out, w.out, n, w.out, w.in);
}

void RefBackend::mlp(const float* x, int64_t stride, int n, const MlpWeights& w, float* out, ThreadScratch& s) const {
  const RefWeight& down = unpacked(w.down_proj);
  linear(x, stride, n, unpacked(w.gate_proj), s.y.data(), s);
  linear(x, stride, n, unpacked(w.up_proj), s.z.data(), s);
  silu_multiply(s.y.data(), s.z.data(), n * down.in);
  linear(s.y.data(), down.in, n, down, out, s);
}

void RefBackend::add_and_norm(const Hidden& h, int64_t first, int n, const RefWeight& norm, float* out) const {
  const int64_t d = shape().hidden_size;
  for (int i = 0; i < n; ++i) {
    float* residual = row(h.residual, first + i);
    const float* hidden = row(h.hidden, first + i);
    for (int64_t c = 0; c < d; ++c) residual[c] = h.residual_valid ? residual[c] + hidden[c] : hidden[c];
    rms_norm(residual, norm.data.data(), shape().rms_norm_eps, d, out + i * d);
  }
}

void RefBackend::embed(Lane&, const StepView& view, const PackedWeight& embedding, Hidden& out) {
  const RefWeight& table = unpacked(embedding);
  const int64_t d = shape().hidden_size;
  for (int i = 0; i < view.num_tokens; ++i) {
    std::copy_n(table.data.data() + view.token_ids.as<int32_t>()[i] * d, d, row(out.hidden, i));
  }
  out.residual_valid = false;
}

void RefBackend::attn_project(Lane&, const StepView& view, const AttnWeights& w, Hidden& h, KvLayer& cache,
                              Activations& activations) {
  auto& act = static_cast<RefActivations&>(activations);
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch& s) {
    add_and_norm(h, first, n, unpacked(w.input_norm), s.x.data());
    project_queries(view, w, first, n, act, s);
    project_latents(view, w, first, n, cache, s);
  });
  h.residual_valid = true;
}

// s.x holds the normed rows.
void RefBackend::project_queries(const StepView& view, const AttnWeights& w, int64_t first, int n, RefActivations& act,
                                 ThreadScratch& s) const {
  const ModelShape& m = shape();
  const int64_t heads = m.num_attention_heads, nope = m.qk_nope_head_dim, rope = m.qk_rope_head_dim;
  const int64_t latent = m.kv_lora_rank, size = attention_->query_size(), head_size = size / heads;
  if (m.q_lora_rank > 0) {
    linear(s.x.data(), m.hidden_size, n, unpacked(w.q_a_proj), s.y.data(), s);
    for (int i = 0; i < n; ++i) {
      float* q_a = &s.y[i * m.q_lora_rank];
      rms_norm(q_a, unpacked(w.q_a_norm).data.data(), m.rms_norm_eps, m.q_lora_rank, q_a);
    }
    linear(s.y.data(), m.q_lora_rank, n, unpacked(w.q_b_proj), s.z.data(), s);
  } else {
    linear(s.x.data(), m.hidden_size, n, unpacked(w.q_proj), s.z.data(), s);
  }
  for (int i = 0; i < n; ++i) {
    const int position = std::max(view.positions.as<int32_t>()[first + i], 0);
    for (int64_t h = 0; h < heads; ++h) {
      float* q = &s.z[(i * heads + h) * (nope + rope)];
      rope_->rotate(q + nope, position);
      std::copy_n(q + nope, rope, row(act.queries, first + i) + h * head_size + head_size - rope);
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    const float* q_nope = &s.z[h * (nope + rope)];
    float* out = row(act.queries, first) + h * head_size;
    for (int i = 0; i < n; ++i) {
      if (absorbed_) {
        std::fill_n(out + i * size, latent, 0.0f);
      } else {
        std::copy_n(q_nope + i * heads * (nope + rope), nope, out + i * size);
      }
    }
    if (!absorbed_) continue;
    const float* w_uk = unpacked(w.kv_b_proj).data.data() + h * nope * latent;
    multiply_add(q_nope, heads * (nope + rope), w_uk, latent, out, size, n, latent, nope);
  }
}

void RefBackend::project_latents(const StepView& view, const AttnWeights& w, int64_t first, int n, const KvLayer& cache,
                                 ThreadScratch& s) const {
  const int64_t latent = shape().kv_lora_rank, width = latent + shape().qk_rope_head_dim;
  linear(s.x.data(), shape().hidden_size, n, unpacked(w.kv_a_proj), s.y.data(), s);
  for (int i = 0; i < n; ++i) {
    const int64_t cache_row = view.slot_mapping.as<int64_t>()[first + i];
    if (cache_row < 0) continue;
    float* kv = &s.y[i * width];
    rms_norm(kv, unpacked(w.kv_a_norm).data.data(), shape().rms_norm_eps, latent, kv);
    rope_->rotate(kv + latent, view.positions.as<int32_t>()[first + i]);
    std::copy_n(kv, width, cache.rows.as<float>() + cache_row * width);
  }
}

void RefBackend::attend_request(const StepView& view, int request, int64_t first, int n, const AttnWeights& w,
                                const KvLayer& cache, RefActivations& act, ThreadScratch& s) const {
  const SlotId slot = view.slots.as<int32_t>()[request];
  attention_->attend({n, view.positions.as<int32_t>() + first, row(act.queries, first), row(act.attn_out, first),
                      view.block_tables.as<int32_t>() + slot * view.block_tables.stride[0]},
                     cache, unpacked(w.kv_b_proj), s.attention);
}

void RefBackend::attn_attend(Lane&, const StepView& view, const AttnWeights& w, const KvLayer& cache,
                             Activations& activations, Hidden& h) {
  auto& act = static_cast<RefActivations&>(activations);
  const int32_t* row_req = view.row_req.as<int32_t>();
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch& s) {
    for (int i = 0; i < n;) {  // runs of rows of one request
      int run = 1;
      while (i + run < n && row_req[first + i + run] == row_req[first + i]) ++run;
      if (row_req[first + i] < 0) {
        std::fill_n(row(act.attn_out, first + i), run * act.attn_out.stride[0], 0.0f);
      } else {
        attend_request(view, row_req[first + i], first + i, run, w, cache, act, s);
      }
      i += run;
    }
    linear(row(act.attn_out, first), act.attn_out.stride[0], n, unpacked(w.o_proj), row(h.hidden, first), s);
  });
}

void RefBackend::dense_mlp(Lane&, const StepView& view, const PackedWeight& norm, const MlpWeights& w, Activations&,
                           Hidden& h) {
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch& s) {
    add_and_norm(h, first, n, unpacked(norm), s.x.data());
    mlp(s.x.data(), shape().hidden_size, n, w, row(h.hidden, first), s);
  });
}

void RefBackend::route(Lane&, const StepView& view, int layer, const PackedWeight& norm, const GateWeights& gate,
                       const ep::ExpertMap& map, Activations& act, Hidden& h) {
  const size_t top_k = shape().num_experts_per_tok;
  const float* bias = gate.correction_bias ? unpacked(gate.correction_bias).data.data() : nullptr;
  const RefWeight& w = unpacked(gate.weight);
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch& s) {
    add_and_norm(h, first, n, unpacked(norm), row(act.moe_input, first));
    linear(row(act.moe_input, first), shape().hidden_size, n, w, s.y.data(), s);
    for (int i = 0; i < n; ++i) {
      const std::span<int32_t> ids(act.topk_id.as<int32_t>() + (first + i) * top_k, top_k);
      const std::span<float> weights(row(act.topk_weight, first + i), top_k);
      s.router.route(row_of(view, layer, first + i), &s.y[i * w.out], bias, map, ids, weights);
    }
  });
  count_expert_load(layer, map.num_physical, view, act.topk_id);
}

void RefBackend::shared_expert(Lane&, const StepView& view, const MlpWeights& w, Activations& act) {
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch& s) {
    mlp(row(act.moe_input, first), shape().hidden_size, n, w, row(act.shared_out, first), s);
  });
}

void RefBackend::expert_rows(const MlpWeights& w, const ep::ExpertBatch& batch, int64_t first, int n,
                             ThreadScratch& s) const {
  const int64_t d = shape().hidden_size;
  if (batch.hidden.dtype == DType::kF32) {
    mlp(batch.hidden.as<float>() + first * d, d, n, w, batch.output.as<float>() + first * d, s);
    return;
  }
  const uint16_t* in = batch.hidden.as<uint16_t>() + first * d;
  uint16_t* out = batch.output.as<uint16_t>() + first * d;
  std::transform(in, in + n * d, s.x.begin(), host::from_bf16);
  mlp(s.x.data(), d, n, w, s.x.data(), s);
  std::transform(s.x.begin(), s.x.begin() + n * d, out, host::to_bf16);
}

void RefBackend::experts(Lane&, const ExpertWeights& weights, ep::ExpertBatch& batch) {
  if (batch.hidden.dtype != DType::kF32 && batch.hidden.dtype != DType::kBF16) {
    fault(error(ErrorCode::kUnimplemented,
                fmt::format("experts got rows of {}: ref takes F32 or BF16", to_string(batch.hidden.dtype))));
    return;
  }
  const bool masked = batch.layout == ep::ExpertLayout::kMasked;
  const auto num_local = static_cast<int>(weights.local.size());
  const auto first_row = [&](int e) -> int64_t {
    return masked ? e * batch.hidden.shape[1] : batch.row_offsets.as<int32_t>()[e];
  };
  const auto num_rows = [&](int e) -> int64_t {
    const int32_t* counts = (masked ? batch.num_rows : batch.row_offsets).as<int32_t>();
    return masked ? counts[e] : counts[e + 1] - counts[e];
  };
  expert_blocks_.assign(1, 0);
  for (int e = 0; e < num_local; ++e) {
    expert_blocks_.push_back(expert_blocks_.back() + (num_rows(e) + kBlock - 1) / kBlock);
  }
  team().parallel_for(expert_blocks_.back(), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t block = begin; block < end; ++block) {
      const auto after = std::upper_bound(expert_blocks_.begin(), expert_blocks_.end(), block);
      const auto e = static_cast<int>(after - expert_blocks_.begin()) - 1;
      const int64_t done = (block - expert_blocks_[e]) * kBlock;
      const auto n = static_cast<int>(std::min<int64_t>(kBlock, num_rows(e) - done));
      expert_rows(weights.local[e], batch, first_row(e) + done, n, *scratch_[thread]);
    }
  });
}

void RefBackend::merge(Lane&, const StepView& view, const Activations& act, Hidden& h) {
  const int64_t n = int64_t{view.num_tokens} * shape().hidden_size;
  const float* combined = act.combined.as<float>();
  const float* shared = act.shared_out.as<float>();
  float* hidden = h.hidden.as<float>();
  for (int64_t i = 0; i < n; ++i) hidden[i] = shape().n_shared_experts > 0 ? combined[i] + shared[i] : combined[i];
}

// logits row i = head(row rows[i] of normed), in pieces of vocabulary so that one row is work for all threads.
void RefBackend::logits_of(const Tensor& normed, const int32_t* rows, int num_rows, const RefWeight& head,
                           const Tensor& logits) {
  constexpr int64_t kPiece = 512;
  team().parallel_for(head.out, kPiece, [&](int64_t begin, int64_t end, int) {
    for (int i = 0; i < num_rows; ++i) {
      std::fill(row(logits, i) + begin, row(logits, i) + end, 0.0f);
      multiply_add(row(normed, rows[i]), head.in, head.data.data() + begin, head.out, row(logits, i) + begin, head.out,
                   1, end - begin, head.in);
    }
  });
}

void RefBackend::head(Lane&, const StepView& view, const HeadWeights& w, Activations& act, Hidden& h) {
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch&) {
    add_and_norm(h, first, n, unpacked(w.norm), row(act.final_hidden, first));
  });
  logits_of(act.final_hidden, view.logit_rows.as<int32_t>(), view.num_logit_rows, unpacked(w.head), act.logits);
}

void RefBackend::mtp_input(Lane&, const StepView& view, const PackedWeight& embedding, const MtpWeights& w,
                           Activations& act) {
  const int64_t d = shape().hidden_size;
  const float* table = unpacked(embedding).data.data();
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch& s) {
    for (int i = 0; i < n; ++i) {
      float* pair = &s.x[i * 2 * d];
      const TokenId token = next_token(view, static_cast<int>(first) + i);
      rms_norm(table + token * d, unpacked(w.enorm).data.data(), shape().rms_norm_eps, d, pair);
      rms_norm(row(act.final_hidden, first + i), unpacked(w.hnorm).data.data(), shape().rms_norm_eps, d, pair + d);
    }
    linear(s.x.data(), 2 * d, n, unpacked(w.eh_proj), row(act.mtp.hidden, first), s);
  });
  act.mtp.residual_valid = false;
}

// Draft logits replace the step's in act.logits: row i is sampling slice i.
void RefBackend::mtp_draft(Lane&, const StepView& view, const PackedWeight& norm, const HeadWeights& w,
                           Activations& act) {
  // The normed rows may replace the stream: nothing reads it after this.
  for_row_blocks(view.num_tokens, [&](int64_t first, int n, ThreadScratch&) {
    add_and_norm(act.mtp, first, n, unpacked(norm), row(act.mtp.hidden, first));
  });
  logits_of(act.mtp.hidden, view.sample.draft_row.as<int32_t>(), view.sample.num_slices, unpacked(w.head), act.logits);
  store_drafts(view, act.logits);
}

}  // namespace

Result<std::unique_ptr<Backend>> make_ref_backend(const BackendOptions& options) {
  if (options.fp8_activations != "none" && options.fp8_activations != "dynamic") {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("fp8_activations '{}': must be none or dynamic", options.fp8_activations));
  }
  if (options.num_threads < 0) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("cpu_threads {}: must be 0 (all cores) or more", options.num_threads));
  }
  MANTA_ASSIGN(const host::RoutingSimulation simulation, host::parse_routing_simulation(options.routing_simulation));
  auto out =
      std::make_unique<RefBackend>(options.num_threads, options.fp8_activations == "dynamic", options.batch_invariant);
  out->simulate_routing(simulation);
  out->share_cache(options.shareable_cache);
  return std::unique_ptr<Backend>(std::move(out));
}

}  // namespace manta::backend::ref
