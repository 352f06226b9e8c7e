// Every stage of the cuda backend against ref: the whole case list in both FP8 modes, and DeepSeek-V3's own dimensions.
#include <gtest/gtest.h>

#include <cmath>

#include "device_access.h"
#include "stage_cases.h"

namespace manta::backend::testing {
namespace {

// bf16 activations, as on cpu: rounding a row once is a relative error of 1.7e-3.
constexpr StageBounds kBounds = {
    .stream = 1.2e-2, .cache = 4e-3, .logits = 6e-3, .router_margin = 1e-4, .topk_weight = 1e-4};
// Dynamic FP8: where bf16 rounding inside a stage moves a value across an e4m3 boundary it jumps by up to 1/8;
// rows of a few hundred values, as in the small cases, show that most.
constexpr StageBounds kDynamicBounds = {
    .stream = 7e-2, .cache = 1e-2, .logits = 6e-3, .router_margin = 1e-4, .topk_weight = 1e-4};

Subject subject(const std::string& fp8_activations) {
  return {.make = [fp8_activations] { return make_backend("cuda", {.fp8_activations = fp8_activations}); },
          .bounds = fp8_activations == "none" ? kBounds : kDynamicBounds,
          .access = device_access(),
          .fp8_activations = fp8_activations};
}

// All of V3 that a layer has, but 16 experts and an eighth of the vocabulary: ref holds everything in float32.
StageCase v3_case() {
  StageCase c;
  c.name = "DeepSeek-V3";
  ModelShape& s = c.shape;
  s.vocab_size = 16160;
  s.hidden_size = 7168;
  s.num_hidden_layers = 2;
  s.num_mtp_layers = 1;
  s.first_k_dense_replace = 1;
  s.intermediate_size = 18432;
  s.moe_intermediate_size = 2048;
  s.n_routed_experts = 16;
  s.n_shared_experts = 1;
  s.num_experts_per_tok = 8;
  s.n_group = 8;
  s.topk_group = 4;
  s.routed_scaling_factor = 2.5f;
  s.num_attention_heads = 128;
  s.q_lora_rank = 1536;
  s.kv_lora_rank = 512;
  s.qk_nope_head_dim = 128;
  s.qk_rope_head_dim = 64;
  s.v_head_dim = 128;
  s.yarn = {.enabled = true,
            .factor = 40.0f,
            .original_max_position_embeddings = 4096,
            .mscale = 1.0f,
            .mscale_all_dim = 1.0f};
  s.softmax_scale = 1.8738f / std::sqrt(192.0f);
  s.max_position_embeddings = StageCase::kMaxModelLen;
  c.slices = {{300, 2, true}, {63, 1, true}, {0, 9}, {200, 6}};
  c.padded_num_tokens = 20;
  c.num_threads = 12;
  return c;
}

class CudaStages : public ::testing::TestWithParam<std::string> {};

TEST_P(CudaStages, MatchRef) {
  SKIP_WITHOUT_GPU();
  run_stage_cases(subject(GetParam()));
}

TEST_P(CudaStages, MatchRefAtV3Dimensions) {
  SKIP_WITHOUT_GPU();
  run_stage_case(v3_case(), subject(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Fp8, CudaStages, ::testing::Values("none", "dynamic"),
                         [](const auto& info) { return info.param; });

TEST(CudaBackend, SaysWhatIsMissing) {
  const auto backend = make_backend("cuda", {});
  if (backend.ok()) {
    EXPECT_EQ((*backend)->caps().name, "cuda");
    return;
  }
  EXPECT_EQ(backend.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(backend.error().message.find("device cuda: "), std::string::npos) << backend.error().message;
  EXPECT_EQ(make_backend("cuda", {.fp8_activations = "static"}).error().message,
            "fp8_activations 'static': must be none or dynamic");
}

}  // namespace
}  // namespace manta::backend::testing
