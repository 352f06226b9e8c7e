// The dimensions every backend needs, under the names of the checkpoint's config.json. Filled by model/, which alone
// knows the file format.
#pragma once

#include <cstdint>

namespace manta::backend {

enum class ScoringFunc : uint8_t { kSigmoid, kSoftmax };

struct YarnRope {
  bool enabled = false;
  float factor = 1.0f;
  int original_max_position_embeddings = 0;
  float beta_fast = 32.0f;
  float beta_slow = 1.0f;
  float mscale = 1.0f;
  float mscale_all_dim = 0.0f;
};

struct ModelShape {
  int vocab_size = 0;
  int hidden_size = 0;
  int num_hidden_layers = 0;  // without the MTP module
  int num_mtp_layers = 0;     // num_nextn_predict_layers that are loaded: 0 or 1
  int first_k_dense_replace = 0;
  int moe_layer_freq = 1;
  int intermediate_size = 0;      // of the dense layers
  int moe_intermediate_size = 0;  // of one expert
  int n_routed_experts = 0;       // logical experts; 0 = dense model
  int n_shared_experts = 0;
  int num_experts_per_tok = 0;
  int n_group = 1;
  int topk_group = 1;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1.0f;
  ScoringFunc scoring_func = ScoringFunc::kSigmoid;
  bool group_limited_by_top2_sum = true;  // noaux_tc: a group scores the sum of its two best; else its best (V2)

  int num_attention_heads = 0;
  int q_lora_rank = 0;  // 0 = no query compression
  int kv_lora_rank = 0;
  int qk_nope_head_dim = 0;
  int qk_rope_head_dim = 0;
  int v_head_dim = 0;
  float rms_norm_eps = 1e-6f;
  float rope_theta = 10000.0f;
  YarnRope yarn;
  float softmax_scale = 0.0f;  // 1 / sqrt(nope + rope), times YaRN's mscale squared
  int max_position_embeddings = 0;
  bool fp8_scale_ue8m0 = false;  // V3.1: dynamic activation scales are rounded up to a power of two

  bool is_moe_layer(int layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int num_layers() const { return num_hidden_layers + num_mtp_layers; }  // of weights and of the cache
};

}  // namespace manta::backend
