// A checkpoint on a backend with everything a step needs, on one rank: for tests and benches that run the model without
// an executor.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "ep/expert_map.h"
#include "ep/expert_transport.h"
#include "model/config.h"
#include "model/driver.h"
#include "model/stage_clock.h"
#include "model/weights.h"

namespace manta::backend::testing {

// Faults of a test's or bench's own set-up: the message of the error, thrown.
inline void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error().message);
}
template <typename T>
T take(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message);
  return std::move(result).value();
}

struct OpenModel {
  // Owned by the caller and pointing into this; `hook` may be null.
  std::unique_ptr<model::LayerDriver> make_driver(model::LayerHook* hook = nullptr);

  std::unique_ptr<Backend> backend;
  model::ModelConfig config;
  ep::ExpertMap map;
  std::unique_ptr<model::Weights> weights;
  std::vector<std::unique_ptr<Activations>> activations;  // by microbatch
  std::unique_ptr<ep::ExpertTransport> transport;
  model::StageClock clock;
  double load_seconds = 0;  // of reading and packing the weights
};

struct OpenOptions {
  Limits limits;
  int num_blocks = 1;
  int block_size = 64;
  int load_threads = 0;  // 0 = all cores this process may use
};

// limits.num_speculative_tokens > 0 loads the MTP module. Throws std::runtime_error with the error's message.
std::unique_ptr<OpenModel> open_model(std::unique_ptr<Backend> backend, const std::string& folder,
                                      const OpenOptions& options);

}  // namespace manta::backend::testing
