#include "backend/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "backend/cpu/stages.h"

namespace manta::backend::cpu {

CpuBackend::CpuBackend(int num_threads, bool batch_invariant, const Kernels& kernels)
    : HostBackend(num_threads), kernels_(kernels) {
  caps_.name = "cpu";
  caps_.description = fmt::format("cpu ({} threads, {}{})", team().num_threads(), kernels.name,
                                  batch_invariant ? "" : ", unabsorbed prefill");
  caps_.batch_invariant = batch_invariant;
  caps_.cache_dtype = DType::kBF16;
  caps_.wire_dtype = DType::kBF16;
}

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
  routers_.assign(s.n_routed_experts > 0 ? team().num_threads() : 0, make_router());
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
  const int64_t shared = int64_t{s.moe_intermediate_size} * s.n_shared_experts;
  const int64_t routed = int64_t{s.moe_intermediate_size} * s.num_experts_per_tok;
  const int64_t inner = std::max<int64_t>({even(s.intermediate_size), moe ? even(shared) : 0,
                                           moe ? routed + s.num_experts_per_tok : 0});  // odd rows are padded
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
  MANTA_TRY(take(scratch_.inner, DType::kBF16, t, inner));
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

Tensor CpuBackend::inner_rows(int64_t width) const {
  return make_tensor(scratch_.inner.data, DType::kBF16, {scratch_.inner.num_elements() / even(width), even(width)});
}

void CpuBackend::mlp(const Tensor& a, int rows, const MlpWeights& w, const Tensor& out) {
  const Tensor inner = inner_rows(matrix(w.gate_proj).n());
  GemmProblem p;
  p.weight = &matrix(w.gate_proj);
  p.up = &matrix(w.up_proj);
  p.a = a.data;
  p.lda = a.stride[0];
  p.rows = rows;
  p.out_bf16 = inner.as<uint16_t>();
  p.ldo = inner.stride[0];
  p.pad_pair = true;
  gemm_->run({&p, 1});
  linear(inner, rows, matrix(w.down_proj), out);
}

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
  MANTA_ASSIGN(const host::RoutingSimulation simulation, host::parse_routing_simulation(options.routing_simulation));
  auto out = std::make_unique<CpuBackend>(options.num_threads, options.batch_invariant, *chosen);
  out->simulate_routing(simulation);
  out->share_cache(options.shareable_cache);
  return std::unique_ptr<Backend>(std::move(out));
}

}  // namespace manta::backend::cpu
