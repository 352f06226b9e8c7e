// A checkpoint small enough to write in every test: hidden 8, two layers (one dense), four experts, an MTP module.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weight_list.h"
#include "model/weight_source.h"

namespace manta::model {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "manta_model_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline nlohmann::json small_config() {
  return {{"model_type", "deepseek_v3"},
          {"architectures", {"DeepseekV3ForCausalLM"}},
          {"vocab_size", 16},
          {"hidden_size", 8},
          {"num_hidden_layers", 2},
          {"num_nextn_predict_layers", 1},
          {"first_k_dense_replace", 1},
          {"intermediate_size", 12},
          {"moe_intermediate_size", 4},
          {"n_routed_experts", 4},
          {"n_shared_experts", 1},
          {"num_experts_per_tok", 2},
          {"n_group", 2},
          {"topk_group", 1},
          {"topk_method", "noaux_tc"},
          {"scoring_func", "sigmoid"},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 2.5},
          {"num_attention_heads", 2},
          {"q_lora_rank", 6},
          {"kv_lora_rank", 10},
          {"qk_nope_head_dim", 4},
          {"qk_rope_head_dim", 2},
          {"v_head_dim", 3},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 10000},
          {"max_position_embeddings", 64},
          {"hidden_act", "silu"},
          {"bos_token_id", 0},
          {"eos_token_id", 1},
          {"torch_dtype", "bfloat16"}};
}

inline ModelConfig config_of(const nlohmann::json& json, bool mtp = false) {
  auto config = parse_config(json.dump(), "");
  EXPECT_TRUE(config.ok()) << config.error().message;
  if (mtp) {
    EXPECT_TRUE(enable_mtp(*config).ok());
  }
  return *config;
}

// Tensors by name, as a file holds them.
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using TensorMap = std::map<std::string, StoredTensor>;

inline std::string with_length(const std::string& header) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i) & 255);
  return out + header;
}

inline std::string safetensors_bytes(const TensorMap& tensors) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, t] : tensors) {
    header[name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  return with_length(header.dump()) + data;
}

// What a dummy checkpoint of this model holds, with the whole MTP module.
inline TensorMap dummy_tensors(const nlohmann::json& json, uint64_t seed = 1) {
  ModelConfig config = config_of(json);
  if (config.num_nextn_predict_layers > 0) {
    EXPECT_TRUE(enable_mtp(config).ok());
  }
  const int rows = num_moe_rows(config.shape);
  auto map = ep::linear_expert_map(rows, config.shape.n_routed_experts, 0, 1, Epoch{1});
  EXPECT_TRUE(map.ok());
  Weights weights;
  auto targets = list_weights(config, {&*map, 0, 1}, weights);
  EXPECT_TRUE(targets.ok()) << targets.error().message;
  const auto source = make_dummy_weights(config, seed);
  TensorMap tensors;
  const auto keep = [&](const std::string& name, const Tensor& t, const std::vector<int64_t>& shape) {
    const size_t bytes = static_cast<size_t>(t.num_elements()) * dtype_bytes(t.dtype);
    tensors[name] = {to_string(t.dtype), shape, std::string(static_cast<const char*>(t.data), bytes)};
  };
  ReadBuffer buffer;
  for (const WeightTarget& target : *targets) {
    const auto view = source->read(target.spec, buffer);
    keep(target.spec.name, view->data, target.spec.shape);
    if (view->scale_inv.data) keep(target.spec.name + "_scale_inv", view->scale_inv, target.spec.scale_shape());
  }
  for (const auto& [copy, original] : shared_with_mtp(config)) tensors[copy] = tensors.at(original);
  return tensors;
}

// Writes config.json, `num_files` shards and their index (one file: model.safetensors alone).
inline void write_checkpoint(const std::string& folder, const nlohmann::json& config, const TensorMap& tensors,
                             int num_files = 1) {
  write_file(folder + "/config.json", config.dump());
  if (num_files == 1) return write_file(folder + "/model.safetensors", safetensors_bytes(tensors));
  std::vector<TensorMap> shards(num_files);
  nlohmann::json map;
  int i = 0;
  for (const auto& [name, tensor] : tensors) {
    const int shard = i++ % num_files;
    shards[shard][name] = tensor;
    map[name] = "model-" + std::to_string(shard) + ".safetensors";
  }
  for (int s = 0; s < num_files; ++s) {
    write_file(folder + "/model-" + std::to_string(s) + ".safetensors", safetensors_bytes(shards[s]));
  }
  write_file(folder + "/model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
}

}  // namespace manta::model
