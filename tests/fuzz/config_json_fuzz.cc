// Any text as config.json, as hf_overrides over a good one, and as generation_config.json. What is accepted must be a
// model whose sizes can be computed with: the list of its tensors is made, as the loader would.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/config.h"
#include "model/generation_config.h"
#include "model/weight_list.h"

namespace {

constexpr std::string_view kGood = R"({"model_type":"deepseek_v3","vocab_size":16,"hidden_size":8,"num_hidden_layers":2,
"num_nextn_predict_layers":1,"first_k_dense_replace":1,"intermediate_size":12,"moe_intermediate_size":4,
"n_routed_experts":4,"n_shared_experts":1,"num_experts_per_tok":2,"n_group":2,"topk_group":1,"num_attention_heads":2,
"q_lora_rank":6,"kv_lora_rank":10,"qk_nope_head_dim":4,"qk_rope_head_dim":2,"v_head_dim":3,"rms_norm_eps":1e-6,
"max_position_embeddings":64})";

void use(const manta::Result<manta::model::ModelConfig>& parsed) {
  using namespace manta::model;  // NOLINT
  if (!parsed.ok()) return;
  ModelConfig config = *parsed;
  const auto& shape = config.shape;
  if (!std::isfinite(shape.softmax_scale) || shape.softmax_scale <= 0) std::abort();
  if (shape.n_routed_experts > 0 && shape.n_routed_experts % shape.n_group != 0) std::abort();
  if (config.num_nextn_predict_layers > 0 && !enable_mtp(config).ok()) std::abort();
  if (shape.num_hidden_layers > 16 || shape.n_routed_experts > 64) return;  // slow, not different
  const auto map = manta::ep::linear_expert_map(num_moe_rows(shape), shape.n_routed_experts, 0, 1, {});
  if (!map.ok() && shape.n_routed_experts > 0) std::abort();
  Weights weights;
  const auto targets = list_weights(config, {map.ok() ? &*map : nullptr, 0, 1}, weights);
  if (!targets.ok()) std::abort();
  const KnownNames known(config);
  for (const auto& target : *targets) {
    int64_t elements = 1;
    for (const int64_t dim : target.spec.shape) {
      if (dim < 1 || __builtin_mul_overflow(elements, dim, &elements)) std::abort();
    }
    if (!known.contains(target.spec.name)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  use(manta::model::parse_config(text, ""));
  use(manta::model::parse_config(kGood, text));
  (void)manta::model::parse_generation_config(text, 16);
  return 0;
}
