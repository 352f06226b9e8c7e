#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/generation_config.h"
#include "test_checkpoint.h"

namespace manta::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// small_config() with these keys replaced must be refused with all of the words.
void expect_refused(const json& patch, ErrorCode code, std::initializer_list<const char*> words) {
  const auto config = parse_config(small_config().dump(), patch.dump());
  ASSERT_FALSE(config.ok()) << patch;
  EXPECT_EQ(config.error().code, code) << config.error().message;
  for (const char* word : words) EXPECT_THAT(config.error().message, HasSubstr(word));
}

TEST(Config, ReadsTheEmbeddedModel) {
  const auto config = load_config("models/tiny-v3", "");
  ASSERT_TRUE(config.ok()) << config.error().message;
  const backend::ModelShape& s = config->shape;
  EXPECT_EQ(s.vocab_size, 4096);
  EXPECT_EQ(s.num_hidden_layers, 5);
  EXPECT_EQ(config->num_nextn_predict_layers, 1);
  EXPECT_EQ(s.num_mtp_layers, 0) << "only enable_mtp loads it";
  EXPECT_EQ(s.n_routed_experts, 32);
  EXPECT_EQ(s.n_group, 8);
  EXPECT_EQ(s.topk_group, 4);
  EXPECT_TRUE(s.yarn.enabled);
  EXPECT_FLOAT_EQ(s.yarn.factor, 4.0f);
  EXPECT_NEAR(s.softmax_scale, std::pow(0.1 * std::log(4.0) + 1, 2) / std::sqrt(192.0), 1e-7);
  EXPECT_TRUE(config->quantization.fp8);
  EXPECT_FALSE(s.fp8_scale_ue8m0);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1));
  EXPECT_THAT(config->notes, IsEmpty());
}

TEST(Config, ReadsDeepSeekV31) {  // the published config.json, word for word
  const auto config = parse_config(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config",
                 "AutoModel": "modeling_deepseek.DeepseekV3Model",
                 "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
    "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
    "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.44.2",
    "use_cache": true, "v_head_dim": 128, "vocab_size": 129280})",
                                   "");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->shape.num_hidden_layers, 61);
  EXPECT_TRUE(config->shape.fp8_scale_ue8m0);
  EXPECT_NEAR(config->shape.softmax_scale, 0.1352337, 1e-6);
  EXPECT_THAT(config->notes, IsEmpty());
}

TEST(Config, ReadsV2Lite) {
  json v2 = small_config();
  v2.merge_patch({{"model_type", "deepseek_v2"},
                  {"q_lora_rank", nullptr},
                  {"topk_method", "greedy"},
                  {"scoring_func", "softmax"},
                  {"norm_topk_prob", false},
                  {"routed_scaling_factor", 1.0},
                  {"n_group", 1},
                  {"aux_loss_alpha", 0.001},
                  {"seq_aux", true},
                  {"num_nextn_predict_layers", nullptr},
                  {"rope_scaling",
                   {{"type", "yarn"},
                    {"factor", 40},
                    {"mscale", 0.707},
                    {"mscale_all_dim", 0.707},
                    {"original_max_position_embeddings", 4096}}}});
  const ModelConfig config = config_of(v2);
  EXPECT_EQ(config.shape.q_lora_rank, 0);
  EXPECT_EQ(config.shape.scoring_func, backend::ScoringFunc::kSoftmax);
  EXPECT_FALSE(config.shape.group_limited_by_top2_sum);
  EXPECT_FALSE(config.shape.norm_topk_prob);
  EXPECT_EQ(config.num_nextn_predict_layers, 0);
}

TEST(Config, GreedyHasNoGroups) {
  const json patch = {{"scoring_func", "softmax"}, {"topk_method", "greedy"}, {"n_group", 2}};
  const auto config = parse_config(small_config().dump(), patch.dump());
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->shape.n_group, 1);
}

TEST(Config, BothSpellingsOfRope) {
  const json yarn = {{"factor", 4}, {"original_max_position_embeddings", 16}};
  for (const char* key : {"type", "rope_type"}) {
    json scaling = yarn;
    scaling[key] = "yarn";
    const ModelConfig config = config_of([&] {
      json c = small_config();
      c["rope_scaling"] = scaling;
      return c;
    }());
    EXPECT_TRUE(config.shape.yarn.enabled) << key;
  }
  json with_parameters = small_config();
  with_parameters.erase("rope_theta");
  with_parameters["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 50000}};
  const ModelConfig config = config_of(with_parameters);
  EXPECT_FALSE(config.shape.yarn.enabled);
  EXPECT_FLOAT_EQ(config.shape.rope_theta, 50000.0f);
}

TEST(Config, OverridesMergeAndRemove) {
  json file = small_config();
  file["sliding_window"] = 128;
  EXPECT_FALSE(parse_config(file.dump(), "").ok());
  const auto config = parse_config(file.dump(), R"({"sliding_window": null, "rope_theta": 5e5})");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_FLOAT_EQ(config->shape.rope_theta, 5e5f);
  EXPECT_THAT(parse_config(file.dump(), "[1]").error().message, HasSubstr("hf_overrides is not a JSON object"));
}

TEST(Config, UnknownKeysAreRefusedByName) {
  expect_refused({{"index_topk", 2048}}, ErrorCode::kUnimplemented, {"index_topk", "2048", "hf-overrides"});
  expect_refused({{"use_qk_norm", true}}, ErrorCode::kUnimplemented, {"use_qk_norm"});
  expect_refused({{"layer_types", {"full"}}}, ErrorCode::kUnimplemented, {"layer_types"});
  expect_refused(
      {{"rope_scaling", {{"type", "yarn"}, {"original_max_position_embeddings", 16}, {"attention_factor", 2}}}},
      ErrorCode::kUnimplemented, {"rope_scaling", "attention_factor"});
  const auto noted = parse_config(small_config().dump(), R"({"unsloth_version": "2025.1"})");
  ASSERT_TRUE(noted.ok());
  EXPECT_THAT(noted->notes, ElementsAre(HasSubstr("unsloth_version")));
}

TEST(Config, OtherModelsAreRefused) {
  expect_refused({{"model_type", "llama"}}, ErrorCode::kUnimplemented, {"model_type", "llama", "deepseek_v3"});
  expect_refused({{"hidden_act", "gelu"}}, ErrorCode::kUnimplemented, {"hidden_act", "gelu"});
  expect_refused({{"attention_bias", true}}, ErrorCode::kUnimplemented, {"attention_bias"});
  expect_refused({{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}, ErrorCode::kUnimplemented,
                 {"linear", "yarn"});
  expect_refused({{"scoring_func", "softmax"}}, ErrorCode::kUnimplemented, {"softmax", "noaux_tc"});
  expect_refused({{"num_key_value_heads", 1}}, ErrorCode::kUnimplemented, {"num_key_value_heads 1", "2"});
  expect_refused({{"quantization_config", {{"quant_method", "awq"}}}}, ErrorCode::kUnimplemented,
                 {"quant_method", "awq"});
  expect_refused({{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}}}},
                 ErrorCode::kUnimplemented, {"[64, 64]", "[128, 128]"});
}

TEST(Config, EveryNumberHasABound) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank",
                          "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size",
                          "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group", "moe_layer_freq",
                          "rms_norm_eps", "rope_theta", "routed_scaling_factor", "max_position_embeddings"}) {
    for (const json& value : {json(0), json(-1), json(1e300), json(UINT64_MAX), json("8"), json(true), json({1})}) {
      expect_refused({{key, value}}, ErrorCode::kInvalidArgument, {key, "must be"});
    }
  }
  expect_refused({{"hidden_size", nullptr}}, ErrorCode::kInvalidArgument, {"hidden_size is missing"});
  expect_refused({{"first_k_dense_replace", -1}}, ErrorCode::kInvalidArgument, {"first_k_dense_replace -1"});
  expect_refused({{"eos_token_id", {1, 16}}}, ErrorCode::kInvalidArgument, {"eos_token_id", "16", "15"});
}

TEST(Config, NumbersMustFitEachOther) {
  expect_refused({{"n_group", 3}}, ErrorCode::kInvalidArgument, {"n_group 3", "4"});
  expect_refused({{"n_group", 4}, {"topk_group", 2}}, ErrorCode::kInvalidArgument, {"n_group 4", "two experts"});
  expect_refused({{"topk_group", 3}}, ErrorCode::kInvalidArgument, {"topk_group 3", "2"});
  expect_refused({{"num_experts_per_tok", 3}}, ErrorCode::kInvalidArgument, {"num_experts_per_tok 3"});
  expect_refused({{"qk_rope_head_dim", 3}}, ErrorCode::kInvalidArgument, {"qk_rope_head_dim 3", "even"});
}

TEST(Config, NotJson) {
  for (const char* text : {"", "{", "[]", "null", "\"x\"", "{\"a\":1}{", "{\"vocab_size\": 1e999}", "\xff\xfe"}) {
    EXPECT_EQ(parse_config(text, "").error().code, ErrorCode::kInvalidArgument) << text;
  }
  EXPECT_THAT(parse_config(R"({"vocab_size": 1, "vocab_size": 2})", "").error().message, HasSubstr("twice"));
  EXPECT_THAT(parse_config("{\"a\":" + std::string(100000, '['), "").error().message, HasSubstr("JSON"));
  EXPECT_THAT(parse_config("{\"a\":" + std::string(50, '[') + std::string(50, ']') + "}", "").error().message,
              HasSubstr("nested"));
  EXPECT_THAT(load_config("/nowhere", "").error().message, HasSubstr("/nowhere/config.json"));
}

TEST(Config, MtpNeedsTheModule) {
  json without = small_config();
  without.erase("num_nextn_predict_layers");
  ModelConfig config = config_of(without);
  EXPECT_THAT(enable_mtp(config).error().message, HasSubstr("num_nextn_predict_layers"));
  EXPECT_EQ(config_of(small_config(), /*mtp=*/true).shape.num_layers(), 3);
}

TEST(GenerationConfig, DefaultsOfTheCheckpoint) {
  const auto tiny = load_generation_config("models/tiny-v3", 4096);
  ASSERT_TRUE(tiny.ok()) << tiny.error().message;
  EXPECT_FLOAT_EQ(*tiny->temperature, 0.3f);
  EXPECT_FLOAT_EQ(*tiny->top_p, 0.95f);
  EXPECT_FALSE(tiny->top_k.has_value());
  EXPECT_THAT(tiny->eos_token_ids, ElementsAre(1));
  EXPECT_THAT(tiny->notes, IsEmpty());

  const auto greedy = parse_generation_config(R"({"do_sample": false, "eos_token_id": [3, 1], "num_beams": 4})", 8);
  ASSERT_TRUE(greedy.ok());
  EXPECT_FLOAT_EQ(*greedy->temperature, 0.0f);
  EXPECT_THAT(greedy->eos_token_ids, ElementsAre(3, 1));
  EXPECT_THAT(greedy->notes, ElementsAre(HasSubstr("num_beams")));

  EXPECT_THAT(parse_generation_config(R"({"top_p": 1.5})", 8).error().message, HasSubstr("top_p 1.5"));
  EXPECT_THAT(parse_generation_config(R"({"eos_token_id": 8})", 8).error().message, HasSubstr("[0, 7]"));
  const TempFolder empty;
  EXPECT_TRUE(load_generation_config(empty.path(), 8).ok());
}

}  // namespace
}  // namespace manta::model
