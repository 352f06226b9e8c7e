// model.safetensors.index.json: which file of a sharded checkpoint holds which tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace manta::model {

struct WeightIndex {
  struct Tensor {
    std::string name;
    int file = 0;  // of `files`
  };
  std::vector<std::string> files;  // names in the checkpoint's folder, in order of first use
  std::vector<Tensor> tensors;     // ascending by name, each name once

  // The file of a tensor, or -1.
  int find(std::string_view name) const;
};

// `what` opens every message. File names are names, not paths: an index cannot reach out of its folder.
Result<WeightIndex> parse_weight_index(std::string_view json, const std::string& what);

// The folder's index; without one, its model.safetensors. kNotFound says what was looked for.
Result<WeightIndex> load_weight_index(const std::string& folder);

}  // namespace manta::model
