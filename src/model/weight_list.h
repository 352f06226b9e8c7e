// The names, shapes and uses of a checkpoint's tensors: the one place that knows how DeepSeek spells them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "backend/weights.h"
#include "base/result.h"
#include "base/tensor.h"
#include "ep/expert_map.h"
#include "model/config.h"
#include "model/weights.h"

namespace manta::model {

inline constexpr std::string_view kScaleSuffix = "_scale_inv";

struct WeightSpec {
  std::string name;
  backend::WeightRole role = backend::WeightRole::kLinear;
  std::vector<int64_t> shape;  // [out, in] or [n]

  bool may_be_fp8() const { return role == backend::WeightRole::kLinear || role == backend::WeightRole::kKvUp; }
  std::vector<int64_t> scale_shape() const;  // of its 128 x 128 blocks
};

// A tensor to load and the place its packed form goes to.
struct WeightTarget {
  WeightSpec spec;
  backend::PackedWeightPtr* into = nullptr;
};

// MoE layers counted from 0, main layers then MTP: a layer's row in every ep::ExpertMap. -1: the layer is dense.
int moe_row(const backend::ModelShape& shape, int layer);
int num_moe_rows(const backend::ModelShape& shape);

// The part of the experts that a rank holds. Without experts (dense models) the map is not looked at.
struct ExpertShare {
  const ep::ExpertMap* map = nullptr;
  int rank = 0;
  int size = 1;
};

// Every tensor this rank loads. Sizes `weights` and points into it: it must stay where it is.
// kInvalidArgument when the map does not fit the model.
Result<std::vector<WeightTarget>> list_weights(const ModelConfig& config, const ExpertShare& share, Weights& weights);

// The three matrices of one logical expert.
std::vector<WeightTarget> list_expert(const ModelConfig& config, int layer, int expert, backend::MlpWeights& weights);

// Tells a checkpoint's tensors that belong to the model, on whatever rank, from those that belong to another one.
class KnownNames {
 public:
  explicit KnownNames(const ModelConfig& config);
  bool contains(std::string_view name) const;

 private:
  bool is_expert_or_unloaded(std::string_view name) const;

  const ModelConfig& config_;
  std::unordered_set<std::string> names_;  // without routed experts
};

// Tensors of an MTP module that repeat the main model's: {its name, the main model's name}.
std::vector<std::pair<std::string, std::string>> shared_with_mtp(const ModelConfig& config);

}  // namespace manta::model
