// config.json of DeepSeek-V3, V3-0324, R1, V3.1 and their relatives, read into the shape every backend works from.
// Keys that change the arithmetic and are not known here are refused by name: a model that runs is the model that was
// trained. Every number is checked against a bound, so that no later size can overflow or divide by zero.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backend/model_shape.h"
#include "base/ids.h"
#include "base/result.h"

namespace manta::model {

// How the linear layers are stored. Which tensors really are FP8 is read from the files, tensor by tensor.
struct Quantization {
  bool fp8 = false;  // F8_E4M3 with a float32 <name>_scale_inv per block of kFp8Block x kFp8Block
};
inline constexpr int kFp8Block = 128;

struct ModelConfig {
  std::string model_type;  // "deepseek_v3" or "deepseek_v2"
  backend::ModelShape shape;
  Quantization quantization;
  int num_nextn_predict_layers = 0;  // MTP modules in the checkpoint; enable_mtp() decides on loading
  bool tie_word_embeddings = false;
  TokenId bos_token_id = -1;  // -1: none
  std::vector<TokenId> eos_token_ids;
  std::vector<std::string> notes;  // keys that were ignored, one sentence each, to be logged once
};

// `overrides` is a JSON object merged over the file (RFC 7396: null removes a key), or empty.
// kInvalidArgument: not JSON, a value out of its bound. kUnimplemented: known to change the model and not done here.
Result<ModelConfig> parse_config(std::string_view json, std::string_view overrides);

// <folder>/config.json. kNotFound names the folder.
Result<ModelConfig> load_config(const std::string& folder, std::string_view overrides);

// Loads the MTP module too (shape.num_mtp_layers = 1). kInvalidArgument when the checkpoint has none.
Status enable_mtp(ModelConfig& config);

}  // namespace manta::model
