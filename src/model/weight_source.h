// Where stored tensors come from: a checkpoint's files, or a seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/weights.h"
#include "base/result.h"
#include "model/config.h"
#include "model/weight_list.h"

namespace manta::model {

// Memory a tensor is prepared in when its stored bytes cannot be used as they lie; one per loading thread.
struct ReadBuffer {
  std::vector<uint64_t> data;  // words, so that every dtype is aligned
  std::vector<uint64_t> scales;
};

// All methods may be called from several threads at once.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Name, dtype, shape and scales of the tensor fit the model; reads no data. Errors name file, tensor, what was
  // expected and what was found.
  virtual Status check(const WeightSpec& spec) const = 0;
  // Stored bytes, scales included. Only after check().
  virtual size_t num_bytes(const WeightSpec& spec) const = 0;
  // Ascending in the order that is fastest to read.
  virtual uint64_t read_order(const WeightSpec& spec) const = 0;
  // The tensor, every value finite. Valid until `buffer` is used again. Only after check().
  virtual Result<backend::WeightView> read(const WeightSpec& spec, ReadBuffer& buffer) const = 0;
};

// The folder of a checkpoint. Opens the index and refuses tensors that no part of the model would use.
Result<std::unique_ptr<WeightSource>> open_checkpoint(const std::string& folder, const ModelConfig& config);

// Weights of the right shape, dtype and scale: each value depends on the seed, the tensor's name and its place only, so
// every rank makes the same experts. A backend that makes matrices itself (Caps::makes_random_weights) is told how: the
// values are the same.
std::unique_ptr<WeightSource> make_dummy_weights(const ModelConfig& config, uint64_t seed,
                                                 bool backend_makes_matrices = false);

}  // namespace manta::model
