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

// Expanded keys and values are rounded to bf16 on their way, as public prefill kernels' are; absorbed rows are not.
Subject prefill_subject(const std::string& fp8_activations) {
  Subject s = subject(fp8_activations);
  s.bounds.stream = fp8_activations == "none" ? 1.5e-2 : 8e-2;
  return s;
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

// V3's heads with little else: prefill rows attend expanded or absorbed as their numbers say.
StageCase prefill_case(std::string name, std::vector<CaseSlice> slices) {
  StageCase c = v3_case();
  c.name = std::move(name);
  ModelShape& s = c.shape;
  s.vocab_size = 517;
  s.hidden_size = 512;
  s.intermediate_size = 256;
  s.moe_intermediate_size = 128;
  s.num_attention_heads = 32;
  s.q_lora_rank = 384;
  c.slices = std::move(slices);
  c.padded_num_tokens = 0;
  c.max_model_len = s.max_position_embeddings = 2048;
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

// Memory for expanded keys is that of absorbed queries: here 3.5 rows of context for each row of a step.
TEST_P(CudaStages, PrefillMatchesRef) {
  SKIP_WITHOUT_GPU();
  const std::vector<CaseSlice> lists[] = {
      {{0, 127}},                           // a tile of queries, not full
      {{0, 300}},                           // three
      {{0, 128}, {0, 129}, {0, 255}},       // sequences side by side
      {{40, 200}, {0, 130}},                // a cached prefix
      {{1500, 250}},                        // a context of three passes
      {{1500, 250}, {0, 130}, {300, 200}},  // the second sequence is cut where its own rows begin to see
      {{77, 2, true}, {0, 200}, {5, 9}, {300, 2, true}, {30, 230}, {16, 1, true}},  // beside rows that stay absorbed
      {{1900, 70}, {0, 130}},  // a short suffix of a long prefix stays absorbed
  };
  for (const auto& slices : lists) {
    std::string name = "prefill";
    for (const CaseSlice& s : slices) name += " " + std::to_string(s.history) + "+" + std::to_string(s.num_rows);
    run_stage_case(prefill_case(name, slices), prefill_subject(GetParam()));
  }
  StageCase padded = prefill_case("prefill, padded", {{0, 150}, {60, 1, true}});
  padded.padded_num_tokens = 160;
  run_stage_case(padded, prefill_subject(GetParam()));
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
