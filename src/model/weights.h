// The weights of one rank, as its backend packed them.
#pragma once

#include <cstddef>
#include <vector>

#include "backend/weights.h"

namespace manta::model {

struct Weights {
  backend::PackedWeightPtr embedding;
  std::vector<backend::LayerWeights> layers;  // [shape.num_layers()]: main layers, then the MTP module's
  backend::HeadWeights head;
  backend::MtpWeights mtp;    // only with shape.num_mtp_layers
  size_t num_bytes = 0;       // packed
  size_t num_read_bytes = 0;  // as stored
};

}  // namespace manta::model
