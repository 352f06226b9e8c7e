#include "backend/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "backend/cpu/attention.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/packed_weights.h"
#include "backend/cpu/unabsorbed.h"
#include "backend/host/host_backend.h"
#include "backend/host/rope.h"
#include "backend/host/routing.h"

namespace manta::backend::cpu {
namespace {

int64_t even(int64_t n) {
  return n + n % 2;
}

const PackedMatrix& matrix(const PackedWeightPtr& w) {
  return static_cast<const MatrixWeight&>(*w).matrix;
}
const float* values(const PackedWeight& w) {
  return static_cast<const VectorWeight&>(w).values.data();
}
float* row(const Tensor& t, int64_t i) {
  return t.as<float>() + i * t.stride[0];
}
uint16_t* row_bf16(const Tensor& t, int64_t i) {
  return t.as<uint16_t>() + i * t.stride[0];
}

// What attn_project leaves for attn_attend, per microbatch: with two microbatches in flight the stages interleave.
struct CpuActivations : host::HostActivations {
  Tensor q;           // [T, H * (C + rope)] bf16, absorbed
  Tensor q_separate;  // [T, H * (nope + rope)] bf16, for the unabsorbed form
};

// Scratch inside one stage, shared by all microbatches: stages run one at a time. bf16 rows are padded to a pair.
struct StageScratch {
  host::HostMemory memory;
  Tensor normed;       // [T, D] bf16
  Tensor normed_f32;   // [T, D] f32: the router's input
  Tensor q_a;          // [T, q_lora_rank] f32
  Tensor q_a_normed;   // [T, q_lora_rank] bf16
  Tensor q;            // [T, H * (nope + rope)] f32
  Tensor q_nope;       // [T, H * nope] bf16
  Tensor kv_a;         // [T, C + rope] f32
  Tensor latent_out;   // [T, H * C] bf16
  Tensor attn_out;     // [T, H * v] bf16
  Tensor inner;        // [rows, widest intermediate] bf16
  Tensor gate_logits;  // [T, E] f32
  Tensor mtp_pair;     // [T, 2 D] bf16
};

class CpuBackend : public host::HostBackend {
 public:
  CpuBackend(int num_threads, bool batch_invariant, const Kernels& kernels)
      : HostBackend(num_threads), kernels_(kernels) {
    caps_.name = "cpu";
    caps_.description = fmt::format("cpu ({} threads, {}{})", team().num_threads(), kernels.name,
                                    batch_invariant ? "" : ", unabsorbed prefill");
    caps_.batch_invariant = batch_invariant;
    caps_.cache_dtype = DType::kBF16;
    caps_.wire_dtype = DType::kBF16;
  }

  const Caps& caps() const override { return caps_; }
  Result<PackedWeightPtr> pack(const WeightView& weight, WeightRole role) override {
    return pack_weight(
        weight, role,
        {shape().num_attention_heads, shape().qk_nope_head_dim, shape().v_head_dim, !caps_.batch_invariant});
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
  Status allocate_scratch();
  // body(first, end, thread) over rows that cost `ns_per_row` each.
  template <typename Body>
  void for_rows(int64_t num_rows, int64_t ns_per_row, Body&& body) {
    team().parallel_for(num_rows, grain_for(num_rows, num_rows * ns_per_row, team().num_threads()), body);
  }
  // residual += hidden, or = hidden at the first stage; the norm of row i in f32 and in bf16, null where not wanted.
  void add_and_norm(const Hidden& h, int64_t i, const float* gain, float* out_f32, uint16_t* out_bf16) const;
  void norm_rows(const StepView& view, Hidden& h, const PackedWeight& norm);  // -> scratch_.normed
  void linear(const Tensor& a, int rows, const PackedMatrix& w, const Tensor& out);
  // out [rows, D] = down(silu(gate(a)) * up(a)); a [rows, D] bf16.
  void mlp(const Tensor& a, int rows, const MlpWeights& w, const Tensor& out);
  // Fills absorbed_ and unabsorbed_: which form each request's rows take in this step.
  void choose_forms(const StepView& view);
  void finish_queries(const StepView& view, CpuActivations& act);
  template <typename Fill>
  void for_heads(std::span<const RowRange> ranges, Fill&& fill);
  void absorb_queries(std::span<const RowRange> ranges, const KvUpWeight& w, CpuActivations& act);
  void attend_absorbed(const StepView& view, std::span<const RowRange> ranges, const KvUpWeight& kv_up,
                       const KvLayer& cache, CpuActivations& act);
  void finish_latents(const StepView& view, const AttnWeights& w, KvLayer& cache);
  void embedding_row(const PackedWeight& embedding, TokenId token, float* out) const;
  void expert_rows(const ExpertWeights& weights, const ep::ExpertBatch& batch, int first_expert, int64_t first_row,
                   int64_t end_row);

  const Kernels& kernels_;
  Caps caps_;
  std::optional<Gemm> gemm_;
  std::optional<Attention> attention_;
  std::unique_ptr<Unabsorbed> unabsorbed_form_;  // null: every row takes the absorbed one
  std::vector<RowRange> absorbed_, unabsorbed_;  // of the step at hand
  std::optional<host::RopeTable> rope_;
  std::vector<host::Router> routers_;  // by thread
  StageScratch scratch_;
  std::vector<GemmProblem> problems_;  // of a stage that has many; capacity for all
};

Status CpuBackend::on_init() {
  const ModelShape& s = shape();
  if (s.hidden_size % 2 != 0) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("hidden_size {}: must be even on the cpu backend (bf16 pairs)", s.hidden_size));
  }
  gemm_.emplace(kernels_, team());
  attention_.emplace(kernels_, team(), s, limits(), s.kv_lora_rank + s.qk_rope_head_dim, s.kv_lora_rank);
  absorbed_.reserve(limits().max_num_seqs + 1);
  unabsorbed_.reserve(limits().max_num_seqs);
  if (!caps_.batch_invariant) {
    MANTA_ASSIGN(unabsorbed_form_, Unabsorbed::make(kernels_, team(), s, limits()));
  }
  rope_.emplace(s, limits().max_model_len);
  routers_.assign(s.n_routed_experts > 0 ? team().num_threads() : 0, host::Router(s));
  return allocate_scratch();
}

Status CpuBackend::allocate_scratch() {
  const ModelShape& s = shape();
  scratch_ = StageScratch();
  const int64_t t = limits().max_num_tokens, heads = s.num_attention_heads;
  const auto take = [&](Tensor& out, DType dtype, int64_t rows, int64_t columns) -> Status {
    MANTA_ASSIGN(out, scratch_.memory.allocate("scratch of the stages", dtype, {rows, columns}));
    return {};
  };
  const bool moe = s.n_routed_experts > 0;
  const int64_t inner = std::max<int64_t>(
      {s.intermediate_size, moe ? s.moe_intermediate_size : 0, int64_t{s.moe_intermediate_size} * s.n_shared_experts});
  MANTA_TRY(take(scratch_.normed, DType::kBF16, std::max<int64_t>(t, limits().max_num_seqs), s.hidden_size));
  if (s.q_lora_rank > 0) {
    MANTA_TRY(take(scratch_.q_a, DType::kF32, t, s.q_lora_rank));
    MANTA_TRY(take(scratch_.q_a_normed, DType::kBF16, t, even(s.q_lora_rank)));
  }
  MANTA_TRY(take(scratch_.q, DType::kF32, t, heads * (s.qk_nope_head_dim + s.qk_rope_head_dim)));
  MANTA_TRY(take(scratch_.q_nope, DType::kBF16, t, heads * even(s.qk_nope_head_dim)));
  MANTA_TRY(take(scratch_.kv_a, DType::kF32, t, s.kv_lora_rank + s.qk_rope_head_dim));
  MANTA_TRY(take(scratch_.latent_out, DType::kBF16, t, heads * even(s.kv_lora_rank)));
  MANTA_TRY(take(scratch_.attn_out, DType::kBF16, t, even(heads * s.v_head_dim)));
  MANTA_TRY(take(scratch_.inner, DType::kBF16, t * std::max(1, moe ? s.num_experts_per_tok : 1), even(inner)));
  if (moe) {
    MANTA_TRY(take(scratch_.normed_f32, DType::kF32, t, s.hidden_size));
    MANTA_TRY(take(scratch_.gate_logits, DType::kF32, t, s.n_routed_experts));
  }
  if (s.num_mtp_layers > 0) MANTA_TRY(take(scratch_.mtp_pair, DType::kBF16, t, 2 * s.hidden_size));
  const int ranges = unabsorbed_form_ ? limits().max_num_seqs + 1 : 1;
  problems_.reserve(std::max(s.num_attention_heads * ranges, s.n_routed_experts));
  return {};
}

size_t CpuBackend::derived_bytes() const {
  if (!gemm_) return 0;
  const size_t separate = unabsorbed_form_ ? shape().qk_nope_head_dim + shape().qk_rope_head_dim : 0;
  const size_t q = static_cast<size_t>(limits().max_num_tokens) * shape().num_attention_heads *
                   (shape().kv_lora_rank + shape().qk_rope_head_dim + separate) * sizeof(uint16_t);
  const size_t activations = host::HostActivations::num_bytes(shape(), limits(), DType::kF32, caps_.wire_dtype) + q;
  const size_t rope = static_cast<size_t>(limits().max_model_len) * shape().qk_rope_head_dim * sizeof(float);
  return gemm_->scratch_bytes() + attention_->scratch_bytes() + rope + scratch_.memory.num_bytes() +
         (unabsorbed_form_ ? unabsorbed_form_->scratch_bytes() : 0) + activations * limits().num_microbatches;
}

Result<std::unique_ptr<Activations>> CpuBackend::make_activations() {
  auto act = std::make_unique<CpuActivations>();
  MANTA_TRY(act->allocate(shape(), limits(), DType::kF32, caps_.wire_dtype));
  const int64_t width = int64_t{shape().num_attention_heads} * (shape().kv_lora_rank + shape().qk_rope_head_dim);
  MANTA_ASSIGN(act->q, act->memory.allocate("queries", DType::kBF16, {limits().max_num_tokens, width}));
  if (unabsorbed_form_) {
    const int64_t separate =
        int64_t{shape().num_attention_heads} * (shape().qk_nope_head_dim + shape().qk_rope_head_dim);
    MANTA_ASSIGN(act->q_separate, act->memory.allocate("queries", DType::kBF16, {limits().max_num_tokens, separate}));
  }
  return std::unique_ptr<Activations>(std::move(act));
}

// ---- what stages have in common ------------------------------------------------------------------------------------

void CpuBackend::add_and_norm(const Hidden& h, int64_t i, const float* gain, float* out_f32, uint16_t* out_bf16) const {
  const int d = shape().hidden_size;
  float* residual = row(h.residual, i);
  if (!h.residual_valid) std::memcpy(residual, row(h.hidden, i), sizeof(float) * d);
  kernels_.add_rmsnorm(residual, h.residual_valid ? row(h.hidden, i) : nullptr, gain, d, shape().rms_norm_eps, out_f32,
                       out_bf16);
}

void CpuBackend::norm_rows(const StepView& view, Hidden& h, const PackedWeight& norm) {
  for_rows(view.num_tokens, shape().hidden_size / 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) add_and_norm(h, i, values(norm), nullptr, row_bf16(scratch_.normed, i));
  });
  h.residual_valid = true;
}

void CpuBackend::linear(const Tensor& a, int rows, const PackedMatrix& w, const Tensor& out) {
  GemmProblem p;
  p.weight = &w;
  p.a = a.data;
  p.lda = a.stride[0];
  p.rows = rows;
  p.out_f32 = out.as<float>();
  p.ldo = out.stride[0];
  gemm_->run({&p, 1});
}

void CpuBackend::mlp(const Tensor& a, int rows, const MlpWeights& w, const Tensor& out) {
  GemmProblem p;
  p.weight = &matrix(w.gate_proj);
  p.up = &matrix(w.up_proj);
  p.a = a.data;
  p.lda = a.stride[0];
  p.rows = rows;
  p.out_bf16 = scratch_.inner.as<uint16_t>();
  p.ldo = scratch_.inner.stride[0];
  p.pad_pair = true;
  gemm_->run({&p, 1});
  linear(scratch_.inner, rows, matrix(w.down_proj), out);
}

void CpuBackend::embedding_row(const PackedWeight& embedding, TokenId token, float* out) const {
  const auto& table = static_cast<const EmbeddingWeight&>(embedding);
  const int64_t d = table.hidden_size;
  if (table.bf16.empty()) {
    std::memcpy(out, table.f32.data() + token * d, sizeof(float) * d);
  } else {
    kernels_.from_bf16(table.bf16.data() + token * d, static_cast<int>(d), out);
  }
}

// ---- stages --------------------------------------------------------------------------------------------------------

void CpuBackend::embed(Lane&, const StepView& view, const PackedWeight& embedding, Hidden& out) {
  for_rows(view.num_tokens, shape().hidden_size / 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      embedding_row(embedding, view.token_ids.as<int32_t>()[i], row(out.hidden, i));
    }
  });
  out.residual_valid = false;
}

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
      const int32_t position = view.positions.as<int32_t>()[i];
      routers_[thread].choose(row(scratch_.gate_logits, i), bias, ids, {row(act.topk_weight, i), top_k});
      for (int32_t& id : ids) id = position < 0 ? -1 : host::physical_expert(map, layer, id, position);
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
  const auto num_local = static_cast<int>(weights.local.size());
  const int64_t capacity = scratch_.inner.shape[0];
  if (batch.layout == ep::ExpertLayout::kMasked) {
    for (int e = 0; e < num_local; ++e) {
      const int64_t first = e * batch.hidden.shape[1], end = first + batch.num_rows.as<int32_t>()[e];
      for (int64_t at = first; at < end; at += capacity) {
        expert_rows(weights, batch, e, at, std::min(at + capacity, end));
      }
    }
    return;
  }
  const int32_t* offsets = batch.row_offsets.as<int32_t>();
  // With peers, more rows may come than a step of ours has: as many at a time as there is scratch for.
  for (int64_t at = 0; at < offsets[num_local]; at += capacity) {
    const auto e = static_cast<int>(std::upper_bound(offsets, offsets + num_local + 1, at) - offsets) - 1;
    expert_rows(weights, batch, e, at, std::min<int64_t>(at + capacity, offsets[num_local]));
  }
}

// Rows [first_row, end_row) of the batch, which begin in first_expert. Masked: all of that expert.
void CpuBackend::expert_rows(const ExpertWeights& weights, const ep::ExpertBatch& batch, int first_expert,
                             int64_t first_row, int64_t end_row) {
  const int64_t d = shape().hidden_size;
  const bool masked = batch.layout == ep::ExpertLayout::kMasked;
  problems_.clear();
  std::vector<GemmProblem>& problems = problems_;
  const auto each_expert = [&](auto&& fill) {
    problems.clear();
    int64_t at = first_row;
    for (int e = first_expert; at < end_row; ++e) {
      const int64_t end = masked ? end_row : std::min<int64_t>(batch.row_offsets.as<int32_t>()[e + 1], end_row);
      if (end > at) {
        GemmProblem p;
        p.rows = static_cast<int>(end - at);
        fill(p, weights.local[e], at);
        problems.push_back(p);
      }
      at = std::max(at, end);
    }
    gemm_->run(problems);
  };
  each_expert([&](GemmProblem& p, const MlpWeights& w, int64_t at) {
    p.weight = &matrix(w.gate_proj);
    p.up = &matrix(w.up_proj);
    p.a = batch.hidden.as<uint16_t>() + at * d;
    p.lda = d;
    p.out_bf16 = row_bf16(scratch_.inner, at - first_row);
    p.ldo = scratch_.inner.stride[0];
    p.pad_pair = true;
  });
  each_expert([&](GemmProblem& p, const MlpWeights& w, int64_t at) {
    p.weight = &matrix(w.down_proj);
    p.a = row_bf16(scratch_.inner, at - first_row);
    p.lda = scratch_.inner.stride[0];
    p.out_bf16 = batch.output.as<uint16_t>() + at * d;
    p.ldo = d;
  });
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

void CpuBackend::head(Lane&, const StepView& view, const HeadWeights& w, Activations& act, Hidden& h) {
  for_rows(view.num_tokens, shape().hidden_size / 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) add_and_norm(h, i, values(*w.norm), row(act.final_hidden, i), nullptr);
  });
  h.residual_valid = true;
  const int32_t* rows = view.logit_rows.as<int32_t>();
  for (int i = 0; i < view.num_logit_rows; ++i) {
    kernels_.to_bf16(row(act.final_hidden, rows[i]), shape().hidden_size, row_bf16(scratch_.normed, i));
  }
  linear(scratch_.normed, view.num_logit_rows, matrix(w.head), act.logits);
}

void CpuBackend::mtp_input(Lane&, const StepView& view, const PackedWeight& embedding, const MtpWeights& w,
                           Activations& act) {
  const int d = shape().hidden_size;
  for_rows(view.num_tokens, d / 2, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint16_t* pair = row_bf16(scratch_.mtp_pair, i);
      float* embedded = row(act.mtp.residual, i);  // nothing is in it yet
      embedding_row(embedding, next_token(view, static_cast<int>(i)), embedded);
      kernels_.add_rmsnorm(embedded, nullptr, values(*w.enorm), d, shape().rms_norm_eps, nullptr, pair);
      kernels_.add_rmsnorm(row(act.final_hidden, i), nullptr, values(*w.hnorm), d, shape().rms_norm_eps, nullptr,
                           pair + d);
    }
  });
  linear(scratch_.mtp_pair, view.num_tokens, matrix(w.eh_proj), act.mtp.hidden);
  act.mtp.residual_valid = false;
}

// Draft logits replace the step's in act.logits: row i is sampling slice i.
void CpuBackend::mtp_draft(Lane&, const StepView& view, const PackedWeight& norm, const HeadWeights& w,
                           Activations& act) {
  const int32_t* rows = view.sample.draft_row.as<int32_t>();
  for (int i = 0; i < view.sample.num_slices; ++i) {
    add_and_norm(act.mtp, rows[i], values(norm), nullptr, row_bf16(scratch_.normed, i));
  }
  linear(scratch_.normed, view.sample.num_slices, matrix(w.head), act.logits);
  store_drafts(view, act.logits);
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cpu_backend(const BackendOptions& options, const std::string& kernels) {
  if (options.fp8_activations != "none") {
    return error(
        ErrorCode::kUnimplemented,
        fmt::format("fp8_activations '{}': the cpu backend takes none (ref has dynamic)", options.fp8_activations));
  }
  if (options.num_threads < 0) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("cpu_threads {}: must be 0 (all cores) or more", options.num_threads));
  }
  const TargetList list = available_kernels();
  const Kernels* chosen = kernels.empty() ? &best_kernels() : nullptr;
  for (int i = 0; i < list.count; ++i) {
    if (kernels == list.tables[i]->name) chosen = list.tables[i];
  }
  if (chosen == nullptr) {
    return error(ErrorCode::kUnimplemented, fmt::format("this processor cannot run the kernels '{}'", kernels));
  }
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(options.num_threads, options.batch_invariant, *chosen));
}

}  // namespace manta::backend::cpu
