#include "backend/host/shape_checks.h"

#include <fmt/format.h>

namespace manta::backend::host {
namespace {

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

}  // namespace

Status check_positive(const char* name, int value) {
  if (value > 0) return {};
  return invalid(fmt::format("{} {}: must be at least 1", name, value));
}

Status check_shape(const ModelShape& s) {
  MANTA_TRY(check_positive("vocab_size", s.vocab_size));
  MANTA_TRY(check_positive("hidden_size", s.hidden_size));
  MANTA_TRY(check_positive("num_hidden_layers", s.num_hidden_layers));
  MANTA_TRY(check_positive("num_attention_heads", s.num_attention_heads));
  MANTA_TRY(check_positive("kv_lora_rank", s.kv_lora_rank));
  MANTA_TRY(check_positive("qk_nope_head_dim", s.qk_nope_head_dim));
  MANTA_TRY(check_positive("v_head_dim", s.v_head_dim));
  if (s.qk_rope_head_dim < 2 || s.qk_rope_head_dim % 2 != 0) {
    return invalid(fmt::format("qk_rope_head_dim {}: must be even and at least 2", s.qk_rope_head_dim));
  }
  if (s.n_routed_experts == 0) return {};
  if (s.num_experts_per_tok < 1 || s.num_experts_per_tok > s.n_routed_experts) {
    return invalid(fmt::format("num_experts_per_tok {}: must be in [1, {}] (n_routed_experts)", s.num_experts_per_tok,
                               s.n_routed_experts));
  }
  if (s.n_group < 1 || s.n_routed_experts % s.n_group != 0) {
    return invalid(fmt::format("n_group {}: must divide n_routed_experts {}", s.n_group, s.n_routed_experts));
  }
  if (s.topk_group < 1 || s.topk_group > s.n_group ||
      s.topk_group * (s.n_routed_experts / s.n_group) < s.num_experts_per_tok) {
    return invalid(fmt::format("topk_group {}: must be in [1, {}] (n_group) and hold {} experts in groups of {}",
                               s.topk_group, s.n_group, s.num_experts_per_tok, s.n_routed_experts / s.n_group));
  }
  return {};
}

Status check_limits(const Limits& l, const ModelShape& shape) {
  MANTA_TRY(check_positive("max_num_seqs", l.max_num_seqs));
  MANTA_TRY(check_positive("max_num_batched_tokens", l.max_num_tokens));
  MANTA_TRY(check_positive("max_model_len", l.max_model_len));
  MANTA_TRY(check_positive("num_microbatches", l.num_microbatches));
  if (l.num_speculative_tokens < 0 || l.num_speculative_tokens > shape.num_mtp_layers) {
    return invalid(fmt::format("num_speculative_tokens {}: must be in [0, {}], a draft per MTP module of the model",
                               l.num_speculative_tokens, shape.num_mtp_layers));
  }
  return {};
}

}  // namespace manta::backend::host
