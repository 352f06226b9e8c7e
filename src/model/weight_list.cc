#include "model/weight_list.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>

namespace manta::model {

using backend::ModelShape;
using backend::PackedWeightPtr;
using backend::WeightRole;

namespace {

class ListBuilder {
 public:
  explicit ListBuilder(const ModelConfig& config) : config_(config), shape_(config.shape) {}

  void whole_model(Weights& weights);
  void layer(int layer, backend::LayerWeights& weights);  // without its routed experts
  void mtp(Weights& weights);
  void mlp(const std::string& prefix, int64_t intermediate, backend::MlpWeights& weights);

  std::vector<WeightTarget> take() { return std::move(targets_); }

 private:
  void add(std::string name, WeightRole role, std::vector<int64_t> dims, PackedWeightPtr& into) {
    targets_.push_back({{std::move(name), role, std::move(dims)}, &into});
  }
  void norm(const std::string& name, int64_t n, PackedWeightPtr& into) { add(name, WeightRole::kNorm, {n}, into); }
  void linear(const std::string& name, int64_t out, int64_t in, PackedWeightPtr& into) {
    add(name, WeightRole::kLinear, {out, in}, into);
  }
  void attention(const std::string& prefix, backend::AttnWeights& weights);

  const ModelConfig& config_;
  const ModelShape& shape_;
  std::vector<WeightTarget> targets_;
};

std::string layer_prefix(int layer) {
  return fmt::format("model.layers.{}.", layer);
}

void ListBuilder::attention(const std::string& prefix, backend::AttnWeights& weights) {
  const int64_t hidden = shape_.hidden_size;
  const int64_t heads = shape_.num_attention_heads;
  const int64_t q_rows = heads * (shape_.qk_nope_head_dim + shape_.qk_rope_head_dim);
  if (shape_.q_lora_rank == 0) {
    linear(prefix + "q_proj.weight", q_rows, hidden, weights.q_proj);
  } else {
    linear(prefix + "q_a_proj.weight", shape_.q_lora_rank, hidden, weights.q_a_proj);
    norm(prefix + "q_a_layernorm.weight", shape_.q_lora_rank, weights.q_a_norm);
    linear(prefix + "q_b_proj.weight", q_rows, shape_.q_lora_rank, weights.q_b_proj);
  }
  linear(prefix + "kv_a_proj_with_mqa.weight", shape_.kv_lora_rank + shape_.qk_rope_head_dim, hidden,
         weights.kv_a_proj);
  norm(prefix + "kv_a_layernorm.weight", shape_.kv_lora_rank, weights.kv_a_norm);
  add(prefix + "kv_b_proj.weight", WeightRole::kKvUp,
      {heads * (shape_.qk_nope_head_dim + shape_.v_head_dim), shape_.kv_lora_rank}, weights.kv_b_proj);
  linear(prefix + "o_proj.weight", hidden, heads * shape_.v_head_dim, weights.o_proj);
}

void ListBuilder::mlp(const std::string& prefix, int64_t intermediate, backend::MlpWeights& weights) {
  linear(prefix + "gate_proj.weight", intermediate, shape_.hidden_size, weights.gate_proj);
  linear(prefix + "up_proj.weight", intermediate, shape_.hidden_size, weights.up_proj);
  linear(prefix + "down_proj.weight", shape_.hidden_size, intermediate, weights.down_proj);
}

void ListBuilder::layer(int layer, backend::LayerWeights& weights) {
  const std::string prefix = layer_prefix(layer);
  norm(prefix + "input_layernorm.weight", shape_.hidden_size, weights.attn.input_norm);
  attention(prefix + "self_attn.", weights.attn);
  norm(prefix + "post_attention_layernorm.weight", shape_.hidden_size, weights.post_attn_norm);
  if (!shape_.is_moe_layer(layer)) return mlp(prefix + "mlp.", shape_.intermediate_size, weights.dense_mlp);
  add(prefix + "mlp.gate.weight", WeightRole::kGate, {shape_.n_routed_experts, shape_.hidden_size},
      weights.gate.weight);
  if (shape_.scoring_func == backend::ScoringFunc::kSigmoid) {
    add(prefix + "mlp.gate.e_score_correction_bias", WeightRole::kBias, {shape_.n_routed_experts},
        weights.gate.correction_bias);
  }
  if (shape_.n_shared_experts > 0) {
    mlp(prefix + "mlp.shared_experts.", static_cast<int64_t>(shape_.n_shared_experts) * shape_.moe_intermediate_size,
        weights.shared_expert);
  }
}

void ListBuilder::mtp(Weights& weights) {
  const std::string prefix = layer_prefix(shape_.num_hidden_layers);
  const int64_t hidden = shape_.hidden_size;
  norm(prefix + "enorm.weight", hidden, weights.mtp.enorm);
  norm(prefix + "hnorm.weight", hidden, weights.mtp.hnorm);
  linear(prefix + "eh_proj.weight", hidden, 2 * hidden, weights.mtp.eh_proj);
  norm(prefix + "shared_head.norm.weight", hidden, weights.mtp.norm);
}

void ListBuilder::whole_model(Weights& weights) {
  const int64_t vocab = shape_.vocab_size, hidden = shape_.hidden_size;
  const std::string embedding = "model.embed_tokens.weight";
  add(embedding, WeightRole::kEmbedding, {vocab, hidden}, weights.embedding);
  weights.layers.resize(shape_.num_layers());
  for (int i = 0; i < shape_.num_layers(); ++i) layer(i, weights.layers[i]);
  if (shape_.num_mtp_layers > 0) mtp(weights);
  norm("model.norm.weight", hidden, weights.head.norm);
  add(config_.tie_word_embeddings ? embedding : "lm_head.weight", WeightRole::kHead, {vocab, hidden},
      weights.head.head);
}

Status check_map(const ModelShape& shape, const ExpertShare& share) {
  const auto bad = [](std::string message) { return error(ErrorCode::kInvalidArgument, std::move(message)); };
  if (share.map == nullptr) return bad("this model has routed experts: their placement is missing");
  const ep::ExpertMap& map = *share.map;
  if (map.num_layers != num_moe_rows(shape) || map.num_logical != shape.n_routed_experts) {
    return bad(fmt::format("expert map of {} layers and {} experts: the model has {} MoE layers and {} experts",
                           map.num_layers, map.num_logical, num_moe_rows(shape), shape.n_routed_experts));
  }
  const bool divides = share.size >= 1 && share.rank >= 0 && share.rank < share.size && map.num_physical > 0 &&
                       map.num_physical % share.size == 0;
  if (!divides ||
      map.physical_to_logical.size() != static_cast<size_t>(map.num_layers) * static_cast<size_t>(map.num_physical)) {
    return bad(
        fmt::format("expert map of {} slots does not fit rank {} of {}", map.num_physical, share.rank, share.size));
  }
  for (const int32_t logical : map.physical_to_logical) {
    if (logical < 0 || logical >= map.num_logical) {
      return bad(fmt::format("expert map names expert {}, the model has {}", logical, map.num_logical));
    }
  }
  return {};
}

// "12.rest" -> 12, and name becomes "rest".
std::optional<int> take_number(std::string_view& name) {
  int value = 0;
  const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), value);
  const auto length = static_cast<size_t>(end - name.data());
  if (failed != std::errc() || value < 0 || length >= name.size() || name[length] != '.') return {};
  name.remove_prefix(length + 1);
  return value;
}

bool take_prefix(std::string_view& name, std::string_view prefix) {
  if (name.substr(0, prefix.size()) != prefix) return false;
  name.remove_prefix(prefix.size());
  return true;
}

bool has_suffix(std::string_view name, std::string_view suffix) {
  return name.size() > suffix.size() && name.substr(name.size() - suffix.size()) == suffix;
}

}  // namespace

std::vector<int64_t> WeightSpec::scale_shape() const {
  std::vector<int64_t> blocks;
  for (const int64_t dim : shape) blocks.push_back((dim + kFp8Block - 1) / kFp8Block);
  return blocks;
}

int num_moe_rows(const ModelShape& shape) {
  int rows = 0;
  for (int layer = 0; layer < shape.num_layers(); ++layer) rows += shape.is_moe_layer(layer) ? 1 : 0;
  return rows;
}

int moe_row(const ModelShape& shape, int layer) {
  if (!shape.is_moe_layer(layer)) return -1;
  int row = 0;
  for (int i = 0; i < layer; ++i) row += shape.is_moe_layer(i) ? 1 : 0;
  return row;
}

std::vector<WeightTarget> list_expert(const ModelConfig& config, int layer, int expert, backend::MlpWeights& weights) {
  ListBuilder builder(config);
  builder.mlp(fmt::format("{}mlp.experts.{}.", layer_prefix(layer), expert), config.shape.moe_intermediate_size,
              weights);
  return builder.take();
}

Result<std::vector<WeightTarget>> list_weights(const ModelConfig& config, const ExpertShare& share, Weights& weights) {
  const ModelShape& shape = config.shape;
  ListBuilder builder(config);
  builder.whole_model(weights);
  std::vector<WeightTarget> targets = builder.take();
  if (num_moe_rows(shape) == 0) return targets;
  MANTA_TRY(check_map(shape, share));
  const int num_local = share.map->num_physical / share.size;
  for (int layer = 0, row = 0; layer < shape.num_layers(); ++layer) {
    if (!shape.is_moe_layer(layer)) continue;
    const int32_t* logical =
        &share.map->physical_to_logical[static_cast<size_t>(row++) * share.map->num_physical + share.rank * num_local];
    auto& local = weights.layers[layer].experts.local;
    local.resize(num_local);
    for (int slot = 0; slot < num_local; ++slot) {
      for (WeightTarget& target : list_expert(config, layer, logical[slot], local[slot])) {
        targets.push_back(std::move(target));
      }
    }
  }
  return targets;
}

KnownNames::KnownNames(const ModelConfig& config) : config_(config) {
  Weights unused;
  ListBuilder builder(config);
  builder.whole_model(unused);
  for (const WeightTarget& target : builder.take()) names_.insert(target.spec.name);
  names_.insert("lm_head.weight");  // also where it is tied
  for (const auto& [name, original] : shared_with_mtp(config)) names_.insert(name);
}

bool KnownNames::contains(std::string_view name) const {
  if (config_.quantization.fp8 && has_suffix(name, kScaleSuffix)) name.remove_suffix(kScaleSuffix.size());
  return names_.count(std::string(name)) != 0 || is_expert_or_unloaded(name);
}

bool KnownNames::is_expert_or_unloaded(std::string_view name) const {
  const ModelShape& shape = config_.shape;
  if (!take_prefix(name, "model.layers.")) return false;
  const std::optional<int> layer = take_number(name);
  if (!layer || *layer >= shape.num_hidden_layers + config_.num_nextn_predict_layers) return false;
  if (*layer >= shape.num_layers()) return true;             // an MTP module that is not loaded
  if (name == "self_attn.rotary_emb.inv_freq") return true;  // some writers store this constant
  if (!shape.is_moe_layer(*layer) || !take_prefix(name, "mlp.experts.")) return false;
  const std::optional<int> expert = take_number(name);
  return expert && *expert < shape.n_routed_experts &&
         (name == "gate_proj.weight" || name == "up_proj.weight" || name == "down_proj.weight");
}

std::vector<std::pair<std::string, std::string>> shared_with_mtp(const ModelConfig& config) {
  if (config.shape.num_mtp_layers == 0) return {};
  const std::string prefix = layer_prefix(config.shape.num_hidden_layers);
  return {{prefix + "embed_tokens.weight", "model.embed_tokens.weight"},
          {prefix + "shared_head.head.weight",
           config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"}};
}

}  // namespace manta::model
