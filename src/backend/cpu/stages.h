// The stages of the cpu backend as one class, for the files that define them: stages_attention.cc, stages_mlp.cc and
// stages_ends.cc. Everybody else sees cpu_backend.h.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/cpu/attention.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/packed_weights.h"
#include "backend/cpu/unabsorbed.h"
#include "backend/host/host_backend.h"
#include "backend/host/rope.h"
#include "backend/host/routing.h"

namespace manta::backend::cpu {

inline int64_t even(int64_t n) {
  return n + n % 2;
}

inline const PackedMatrix& matrix(const PackedWeightPtr& w) {
  return static_cast<const MatrixWeight&>(*w).matrix;
}
inline const float* values(const PackedWeight& w) {
  return static_cast<const VectorWeight&>(w).values.data();
}
inline float* row(const Tensor& t, int64_t i) {
  return t.as<float>() + i * t.stride[0];
}
inline uint16_t* row_bf16(const Tensor& t, int64_t i) {
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
  Tensor inner;        // [T, widest intermediate of a token] bf16, cut into rows by inner_rows()
  Tensor gate_logits;  // [T, E] f32
  Tensor mtp_pair;     // [T, 2 D] bf16
};

class CpuBackend : public host::HostBackend {
 public:
  CpuBackend(int num_threads, bool batch_invariant, const Kernels& kernels);

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
  // Scratch for intermediate rows of this width: [as many as there is room for, width rounded up to a pair].
  Tensor inner_rows(int64_t width) const;
  void run_experts(const ExpertWeights& weights, const ep::ExpertBatch& batch);

  const Kernels& kernels_;
  Caps caps_;
  std::optional<Gemm> gemm_;
  std::optional<Attention> attention_;
  std::unique_ptr<Unabsorbed> unabsorbed_form_;  // null: every row takes the absorbed one
  std::vector<RowRange> absorbed_, unabsorbed_;  // of the step at hand
  std::optional<host::RopeTable> rope_;
  std::vector<host::Router> routers_;  // by thread
  StageScratch scratch_;
  // Rows [first, first + count) of an expert batch, whose intermediates stand at first_inner.
  struct ExpertRows {
    int expert = 0;
    int count = 0;
    int64_t first = 0;
    int64_t first_inner = 0;
  };
  std::vector<ExpertRows> expert_rows_;
  std::vector<GemmProblem> problems_;  // of a stage that has many; capacity for all
};

}  // namespace manta::backend::cpu
