// The list of cases, and what a routing decision hangs on.
#include "stage_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace manta::backend::testing {
namespace {

ModelShape small_shape() {
  ModelShape s;
  s.vocab_size = 517;
  s.hidden_size = 256;
  s.num_hidden_layers = 2;
  s.num_mtp_layers = 1;
  s.first_k_dense_replace = 1;
  s.intermediate_size = 320;
  s.moe_intermediate_size = 128;
  s.n_routed_experts = 16;
  s.n_shared_experts = 1;
  s.num_experts_per_tok = 4;
  s.n_group = 4;
  s.topk_group = 2;
  s.routed_scaling_factor = 2.5f;
  s.num_attention_heads = 4;
  s.q_lora_rank = 192;
  s.kv_lora_rank = 128;
  s.qk_nope_head_dim = 64;
  s.qk_rope_head_dim = 32;
  s.v_head_dim = 64;
  s.yarn = {
      .enabled = true, .factor = 4.0f, .original_max_position_embeddings = 128, .mscale = 1.0f, .mscale_all_dim = 1.0f};
  s.softmax_scale = 1.29f / std::sqrt(96.0f);
  s.max_position_embeddings = StageCase::kMaxModelLen;
  return s;
}

// Sizes that divide by nothing, no query compression, softmax scores without groups, plain RoPE, two shared experts.
ModelShape odd_shape() {
  ModelShape s = small_shape();
  s.vocab_size = 131;
  s.hidden_size = 200;
  s.intermediate_size = 72;
  s.moe_intermediate_size = 88;
  s.n_routed_experts = 7;
  s.n_shared_experts = 2;
  s.num_experts_per_tok = 3;
  s.n_group = s.topk_group = 1;
  s.norm_topk_prob = false;
  s.routed_scaling_factor = 1.0f;
  s.scoring_func = ScoringFunc::kSoftmax;
  s.group_limited_by_top2_sum = false;
  s.num_attention_heads = 3;
  s.q_lora_rank = 0;
  s.kv_lora_rank = 72;
  s.qk_nope_head_dim = 24;
  s.qk_rope_head_dim = 8;
  s.v_head_dim = 40;
  s.rope_theta = 50000.0f;
  s.yarn = {};
  s.softmax_scale = 1.0f / std::sqrt(32.0f);
  return s;
}

}  // namespace

std::vector<double> biased_scores(const ModelShape& s, const float* router_logits, const float* correction_bias) {
  const int n = s.n_routed_experts;
  std::vector<double> choice(n);
  double sum = 0;
  for (int e = 0; e < n; ++e) {
    choice[e] = s.scoring_func == ScoringFunc::kSigmoid ? 1 / (1 + std::exp(-double{router_logits[e]}))
                                                        : std::exp(double{router_logits[e]});
    sum += choice[e];
  }
  for (int e = 0; e < n; ++e) {
    if (s.scoring_func == ScoringFunc::kSoftmax) choice[e] /= sum;
    if (correction_bias != nullptr) choice[e] += correction_bias[e];
  }
  return choice;
}

double routing_margin(const ModelShape& s, const float* router_logits, const float* correction_bias) {
  const int n = s.n_routed_experts;
  std::vector<double> choice = biased_scores(s, router_logits, correction_bias);
  const auto gap_after = [](std::vector<double> values, size_t k) {
    std::sort(values.rbegin(), values.rend());
    return k < values.size() ? values[k - 1] - values[k] : std::numeric_limits<double>::infinity();
  };
  double margin = std::numeric_limits<double>::infinity();
  if (s.topk_group < s.n_group) {
    const int size = n / s.n_group;
    std::vector<double> groups(s.n_group);
    std::vector<int> order(s.n_group);
    for (int g = 0; g < s.n_group; ++g) {
      std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      groups[g] = s.group_limited_by_top2_sum && size > 1 ? members[0] + members[1] : members[0];
      order[g] = g;
    }
    margin = gap_after(groups, s.topk_group);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return groups[a] > groups[b]; });
    std::vector<double> eligible;
    for (int i = 0; i < s.topk_group; ++i) {
      eligible.insert(eligible.end(), choice.begin() + order[i] * size, choice.begin() + (order[i] + 1) * size);
    }
    choice = eligible;
  }
  return std::min(margin, gap_after(choice, s.num_experts_per_tok));
}

std::vector<StageCase> stage_cases() {
  std::vector<StageCase> cases;
  const auto add = [&cases](std::string name, ModelShape shape, std::vector<CaseSlice> slices) -> StageCase& {
    return cases.emplace_back(StageCase{.name = std::move(name), .shape = shape, .slices = std::move(slices)});
  };
  for (int t : {1, 31, 32, 33, 127}) add("prefill " + std::to_string(t), small_shape(), {{0, t}});
  add("chunk after a tile edge", small_shape(), {{64, 17}, {63, 2}, {65, 1}});
  add("chunk across tiles", small_shape(), {{50, 90}, {200, 40}});
  add("decode 1", small_shape(), {{77, 1, true}});
  add("decode with drafts", small_shape(), {{1, 2, true}, {63, 2, true}, {64, 2, true}, {300, 2, true}, {15, 1, true}});
  add("decode and prefill", small_shape(), {{100, 2, true}, {0, 33}, {16, 1, true}, {31, 5}});
  add("padded", small_shape(), {{20, 2, true}, {0, 3}}).padded_num_tokens = 13;
  add("only padding", small_shape(), {}).padded_num_tokens = 8;
  add("empty", small_shape(), {});
  add("one expert takes all", small_shape(), {{0, 40}}).one_expert_takes_all = true;
  add("bf16 weights", small_shape(), {{0, 9}, {40, 2, true}}).weight_dtype = DType::kBF16;
  add("one thread", small_shape(), {{0, 33}, {70, 2, true}}).num_threads = 1;
  for (int t : {1, 33}) add("odd sizes, softmax, no q_lora " + std::to_string(t), odd_shape(), {{5, t}});
  add("odd sizes, decode, float32 weights", odd_shape(), {{70, 2, true}, {0, 6}}).weight_dtype = DType::kF32;
  ModelShape v2 = small_shape();  // DeepSeek-V2: softmax, groups by their best expert
  v2.scoring_func = ScoringFunc::kSoftmax;
  v2.group_limited_by_top2_sum = false;
  v2.norm_topk_prob = false;
  v2.routed_scaling_factor = 16.0f;
  v2.yarn.mscale = 0.707f;
  v2.yarn.mscale_all_dim = 0.707f;
  add("V2 routing", v2, {{0, 35}});
  return cases;
}

}  // namespace manta::backend::testing
