#include "model/config.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "model/file.h"
#include "model/json_keys.h"

namespace manta::model {

using backend::ModelShape;
using backend::ScoringFunc;
using nlohmann::json;

namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
// Far above every real model, and low enough that products of two dimensions stay in 40 bits.
constexpr int kMaxVocab = 1 << 22;
constexpr int kMaxWidth = 1 << 16;
constexpr int kMaxIntermediate = 1 << 20;
constexpr int kMaxLayers = 1024;
constexpr int kMaxHeads = 4096;
constexpr int kMaxHeadDim = 4096;
constexpr int kMaxExperts = 65536;
constexpr int kMaxTopK = 256;
constexpr int kMaxPositions = 1 << 30;

// What training, other libraries and the tokenizer keep in config.json.
constexpr std::initializer_list<const char*> kHarmless = {
    "_attn_implementation_autoset",
    "_from_model_config",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "aux_loss_alpha",
    "dtype",
    "ep_size",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "seq_aux",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "use_cache",
};

void read_attention(JsonKeys& keys, ModelShape& shape) {
  shape.num_attention_heads = keys.integer("num_attention_heads", 1, kMaxHeads);
  shape.q_lora_rank = keys.integer("q_lora_rank", 1, kMaxWidth, 0);
  shape.kv_lora_rank = keys.integer("kv_lora_rank", 1, kMaxWidth);
  shape.qk_nope_head_dim = keys.integer("qk_nope_head_dim", 1, kMaxHeadDim);
  shape.qk_rope_head_dim = keys.integer("qk_rope_head_dim", 2, kMaxHeadDim);
  shape.v_head_dim = keys.integer("v_head_dim", 1, kMaxHeadDim);
  const int rope = shape.qk_rope_head_dim;
  const int nope_and_rope = shape.qk_nope_head_dim + rope;
  if (rope % 2 != 0) keys.fail(ErrorCode::kInvalidArgument, fmt::format("qk_rope_head_dim {}: must be even", rope));
  // Derived values that some writers store; others would mean another model.
  const int kv_heads = keys.integer("num_key_value_heads", 1, kMaxHeads, shape.num_attention_heads);
  const int qk = keys.integer("qk_head_dim", 1, 2 * kMaxHeadDim, nope_and_rope);
  const int head_dim = keys.integer("head_dim", 1, 2 * kMaxHeadDim, rope);
  if (kv_heads != shape.num_attention_heads) {
    keys.fail(ErrorCode::kUnimplemented,
              fmt::format("num_key_value_heads {}: MLA has as many as num_attention_heads, {}", kv_heads,
                          shape.num_attention_heads));
  }
  if (qk != nope_and_rope || (head_dim != rope && head_dim != nope_and_rope)) {
    keys.fail(ErrorCode::kUnimplemented,
              fmt::format("qk_head_dim {}, head_dim {}: do not fit qk_nope_head_dim {} + qk_rope_head_dim {}", qk,
                          head_dim, shape.qk_nope_head_dim, rope));
  }
  if (keys.boolean("attention_bias", false)) {
    keys.fail(ErrorCode::kUnimplemented, "attention_bias true: attention projections with a bias are not done here");
  }
  if (!keys.boolean("rope_interleave", true)) {
    keys.fail(ErrorCode::kUnimplemented,
              "rope_interleave false: only DeepSeek's interleaved rotary pairs are done here");
  }
  shape.rms_norm_eps = static_cast<float>(keys.number("rms_norm_eps", 1e-12, 1.0));
  shape.max_position_embeddings = keys.integer("max_position_embeddings", 1, kMaxPositions);
}

void check_experts(JsonKeys& keys, const ModelShape& shape) {
  const int experts = shape.n_routed_experts;
  const auto bad = [&](std::string message) { keys.fail(ErrorCode::kInvalidArgument, std::move(message)); };
  if (shape.num_experts_per_tok > experts) {
    return bad(fmt::format("num_experts_per_tok {}: at most n_routed_experts, {}", shape.num_experts_per_tok, experts));
  }
  if (experts % shape.n_group != 0) {
    return bad(fmt::format("n_group {}: must divide n_routed_experts, {}", shape.n_group, experts));
  }
  const int per_group = experts / shape.n_group;
  if (shape.topk_group > shape.n_group) {
    return bad(fmt::format("topk_group {}: at most n_group, {}", shape.topk_group, shape.n_group));
  }
  if (shape.num_experts_per_tok > shape.topk_group * per_group) {
    return bad(fmt::format("num_experts_per_tok {}: topk_group {} groups of {} experts have fewer",
                           shape.num_experts_per_tok, shape.topk_group, per_group));
  }
  if (shape.group_limited_by_top2_sum && per_group < 2) {
    return bad(fmt::format("n_group {}: noaux_tc needs two experts or more in a group, n_routed_experts is {}",
                           shape.n_group, experts));
  }
}

void read_scoring(JsonKeys& keys, const std::string& model_type, ModelShape& shape) {
  const bool v2 = model_type == "deepseek_v2";
  const std::string scoring = keys.text("scoring_func", {"sigmoid", "softmax"}, v2 ? "softmax" : "sigmoid");
  const std::string method =
      keys.text("topk_method", {"noaux_tc", "greedy", "group_limited_greedy"}, v2 ? "greedy" : "noaux_tc");
  shape.scoring_func = scoring == "softmax" ? ScoringFunc::kSoftmax : ScoringFunc::kSigmoid;
  shape.group_limited_by_top2_sum = method == "noaux_tc";
  if ((scoring == "sigmoid") != (method == "noaux_tc")) {
    keys.fail(
        ErrorCode::kUnimplemented,
        fmt::format("scoring_func {} with topk_method {}: sigmoid goes with noaux_tc (V3), softmax with greedy or "
                    "group_limited_greedy (V2)",
                    scoring, method));
  }
  shape.n_group = keys.integer("n_group", 1, kMaxExperts, 1);
  shape.topk_group = keys.integer("topk_group", 1, kMaxExperts, 1);
  if (method == "greedy") shape.n_group = shape.topk_group = 1;
  shape.norm_topk_prob = keys.boolean("norm_topk_prob", !v2);
  shape.routed_scaling_factor = static_cast<float>(keys.number("routed_scaling_factor", 1e-6, 1e6, 1.0));
  if (v2 && shape.norm_topk_prob && shape.routed_scaling_factor != 1.0f) {
    // DeepSeek's V2 code scales only weights that it does not normalise; Hugging Face's does not normalise at all.
    keys.fail(ErrorCode::kUnimplemented,
              fmt::format("norm_topk_prob true with routed_scaling_factor {}: what that means "
                          "in deepseek_v2 differs between its implementations",
                          shape.routed_scaling_factor));
  }
}

void read_mlp(JsonKeys& keys, const std::string& model_type, ModelShape& shape) {
  shape.n_routed_experts = keys.integer("n_routed_experts", 0, kMaxExperts, 0);
  shape.first_k_dense_replace = keys.integer("first_k_dense_replace", 0, kMaxLayers,
                                             shape.n_routed_experts > 0 ? std::optional<int>() : std::optional<int>(0));
  shape.moe_layer_freq = keys.integer("moe_layer_freq", 1, kMaxLayers, 1);
  const int moe = keys.integer("moe_intermediate_size", 1, kMaxIntermediate, 0);
  const int per_token = keys.integer("num_experts_per_tok", 1, kMaxTopK, 0);
  const int shared = keys.integer("n_shared_experts", 0, kMaxTopK, 0);
  shape.intermediate_size = keys.integer("intermediate_size", 1, kMaxIntermediate);
  keys.text("hidden_act", {"silu"}, "silu");
  if (keys.boolean("mlp_bias", false)) keys.fail(ErrorCode::kUnimplemented, "mlp_bias true: is not done here");
  read_scoring(keys, model_type, shape);
  if (shape.n_routed_experts == 0) return;
  if (moe == 0) keys.fail(ErrorCode::kInvalidArgument, "moe_intermediate_size is missing");
  if (per_token == 0) keys.fail(ErrorCode::kInvalidArgument, "num_experts_per_tok is missing");
  if (static_cast<int64_t>(moe) * shared > kMaxIntermediate) {
    keys.fail(ErrorCode::kInvalidArgument,
              fmt::format("n_shared_experts {} x moe_intermediate_size {}: at most {}", shared, moe, kMaxIntermediate));
  }
  shape.moe_intermediate_size = moe;
  shape.num_experts_per_tok = per_token;
  shape.n_shared_experts = shared;
  check_experts(keys, shape);
}

void read_yarn(JsonKeys& scaling, ModelShape& shape) {
  backend::YarnRope& yarn = shape.yarn;
  yarn.enabled = true;
  yarn.original_max_position_embeddings = scaling.integer("original_max_position_embeddings", 1, kMaxPositions);
  const double ratio =
      static_cast<double>(shape.max_position_embeddings) / std::max(yarn.original_max_position_embeddings, 1);
  yarn.factor = static_cast<float>(scaling.number("factor", 1.0, 1e5, std::max(ratio, 1.0)));
  yarn.beta_fast = static_cast<float>(scaling.number("beta_fast", 1e-3, 1e5, 32.0));
  yarn.beta_slow = static_cast<float>(scaling.number("beta_slow", 1e-3, 1e5, 1.0));
  yarn.mscale = static_cast<float>(scaling.number("mscale", 0.0, 100.0, 1.0));
  yarn.mscale_all_dim = static_cast<float>(scaling.number("mscale_all_dim", 0.0, 100.0, 0.0));
  if (yarn.mscale_all_dim == 0.0f && yarn.mscale != 1.0f) {
    // DeepSeek's code takes mscale, Hugging Face's takes 1.
    scaling.fail(ErrorCode::kUnimplemented,
                 fmt::format("mscale {} without mscale_all_dim: implementations differ in what "
                             "that means",
                             yarn.mscale));
  }
  if (!scaling.boolean("truncate", true)) {
    scaling.fail(ErrorCode::kUnimplemented, "truncate false: is not done here");
  }
}

// rope_scaling of DeepSeek's files, or rope_parameters (which holds rope_theta too) of transformers 5.
Status read_rope(JsonKeys& keys, const std::string& what, ModelShape& shape, std::vector<std::string>* notes) {
  const json* scaling = keys.object("rope_scaling");
  const json* parameters = keys.object("rope_parameters");
  if (scaling && parameters && *scaling != *parameters) {
    keys.fail(ErrorCode::kInvalidArgument, "rope_scaling and rope_parameters: give one of them");
  }
  const json& rope = parameters ? *parameters : scaling ? *scaling : json::object();
  JsonKeys inner(rope, what + (parameters ? ": rope_parameters" : ": rope_scaling"));
  const std::string type = inner.text("type", {"yarn", "default"}, "");
  const std::string rope_type = inner.text("rope_type", {"yarn", "default"}, "");
  if (!type.empty() && !rope_type.empty() && type != rope_type) {
    inner.fail(ErrorCode::kInvalidArgument,
               fmt::format("type {} and rope_type {} contradict each other", type, rope_type));
  }
  if (scaling && type.empty() && rope_type.empty()) inner.fail(ErrorCode::kInvalidArgument, "type is missing");
  const double theta = keys.number("rope_theta", 1.0, 1e12, 10000.0);
  shape.rope_theta = static_cast<float>(inner.number("rope_theta", 1.0, 1e12, theta));
  if (type == "yarn" || rope_type == "yarn") read_yarn(inner, shape);
  inner.refuse_unknown({}, notes);
  return inner.status();
}

// DeepSeek scales attention by mscale^2 too, not only the rotary part.
float softmax_scale(const ModelShape& shape) {
  const double plain = 1.0 / std::sqrt(static_cast<double>(shape.qk_nope_head_dim + shape.qk_rope_head_dim));
  if (!shape.yarn.enabled || shape.yarn.factor <= 1.0f) return static_cast<float>(plain);
  const double mscale = 0.1 * shape.yarn.mscale_all_dim * std::log(static_cast<double>(shape.yarn.factor)) + 1.0;
  return static_cast<float>(plain * mscale * mscale);
}

Status read_quantization(JsonKeys& keys, const std::string& what, ModelConfig& config) {
  const json* object = keys.object("quantization_config");
  if (!object) return {};
  JsonKeys inner(*object, what + ": quantization_config");
  inner.text("quant_method", {"fp8"}, "");
  inner.text("fmt", {"e4m3"}, "e4m3");
  inner.text("activation_scheme", {"dynamic"}, "dynamic");
  config.shape.fp8_scale_ue8m0 = inner.text("scale_fmt", {"ue8m0", "float"}, "float") == "ue8m0";
  if (!inner.has("quant_method")) inner.fail(ErrorCode::kInvalidArgument, "quant_method is missing");
  const std::vector<int> block = inner.integers("weight_block_size", 1, kMaxWidth);
  if (block != std::vector<int>{kFp8Block, kFp8Block}) {
    inner.fail(ErrorCode::kUnimplemented, fmt::format("weight_block_size [{}]: manta reads blocks of [{}, {}]",
                                                      fmt::join(block, ", "), kFp8Block, kFp8Block));
  }
  // Which modules stayed unquantised is seen in the tensors themselves.
  inner.refuse_unknown({"modules_to_not_convert", "ignored_layers", "dequantize"}, &config.notes);
  config.quantization.fp8 = true;
  return inner.status();
}

void read_tokens(JsonKeys& keys, ModelConfig& config) {
  const int last = config.shape.vocab_size - 1;
  config.bos_token_id = keys.integer("bos_token_id", 0, last, -1);
  config.eos_token_ids = keys.integers("eos_token_id", 0, last);
}

Result<ModelConfig> read_model(const json& object, const std::string& what) {
  ModelConfig config;
  ModelShape& shape = config.shape;
  JsonKeys keys(object, what);
  if (!keys.has("model_type")) keys.fail(ErrorCode::kInvalidArgument, "model_type is missing");
  config.model_type = keys.text("model_type", {"deepseek_v3", "deepseek_v2"}, "deepseek_v3");
  shape.vocab_size = keys.integer("vocab_size", 1, kMaxVocab);
  shape.hidden_size = keys.integer("hidden_size", 1, kMaxWidth);
  shape.num_hidden_layers = keys.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_nextn_predict_layers = keys.integer("num_nextn_predict_layers", 0, 64, 0);
  config.tie_word_embeddings = keys.boolean("tie_word_embeddings", false);
  read_attention(keys, shape);
  read_mlp(keys, config.model_type, shape);
  MANTA_TRY(keys.status());  // what follows divides by what was read
  MANTA_TRY(read_rope(keys, what, shape, &config.notes));
  shape.softmax_scale = softmax_scale(shape);
  MANTA_TRY(read_quantization(keys, what, config));
  read_tokens(keys, config);
  keys.refuse_unknown(kHarmless, &config.notes);
  MANTA_TRY(keys.status());
  return config;
}

}  // namespace

Result<ModelConfig> parse_config(std::string_view text, std::string_view overrides) {
  MANTA_ASSIGN(json object, parse_json_object(text, "config.json", kMaxConfigBytes));
  std::string what = "config.json";
  if (!overrides.empty()) {
    MANTA_ASSIGN(const json patch, parse_json_object(overrides, "hf_overrides", kMaxConfigBytes));
    if (!patch.empty()) {
      object.merge_patch(patch);
      what = "config.json with hf_overrides";
    }
  }
  return read_model(object, what);
}

Result<ModelConfig> load_config(const std::string& folder, std::string_view overrides) {
  const auto path = std::filesystem::path(folder) / "config.json";
  MANTA_ASSIGN(const std::string text, read_small_file(path.string(), kMaxConfigBytes));
  auto config = parse_config(text, overrides);
  if (config.ok()) return config;
  return error(config.error().code, folder + ": " + config.error().message);
}

Status enable_mtp(ModelConfig& config) {
  if (config.num_nextn_predict_layers < 1) {
    return error(ErrorCode::kInvalidArgument,
                 "speculative_config method mtp: this checkpoint has no MTP module (num_nextn_predict_layers 0)");
  }
  config.shape.num_mtp_layers = 1;
  return {};
}

}  // namespace manta::model
