// Packs experts for this rank's slots beside the running steps, from the checkpoint, at low priority. One layer waits
// to be taken while the next is packed: the spare memory is the moves of two layers. A pack of the same stored bytes
// gives the same packed bytes, so replicas on other ranks are bit for bit the same expert.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "backend/weights.h"
#include "base/result.h"
#include "ep/eplb/migration.h"

namespace manta::exec {

// Reads and packs logical expert `logical` of the map's row `layer`. Called on the mover's thread.
using LoadExpert = std::function<Result<backend::MlpWeights>(int layer, int logical)>;

class ExpertMover {
 public:
  struct Layer {
    std::vector<ep::ExpertMove> moves;         // of this rank; may be none
    std::vector<backend::MlpWeights> weights;  // by move
  };

  explicit ExpertMover(LoadExpert load) : load_(std::move(load)) {}
  ~ExpertMover() { cancel(); }

  // One entry for every layer that the group migrates, in its order. Nothing else may be moving.
  void begin(std::vector<std::vector<ep::ExpertMove>> layers);
  bool moving() const { return thread_.joinable(); }

  // Layers packed so far, taken ones included; at most one more than taken.
  int num_packed();
  void wait_packed();  // parks until the next layer is packed or has failed
  // The error that ended it, if any.
  Status status();
  // The next layer; its turn must have come. The last one ends the move.
  Layer take();
  // Drops what is not taken yet.
  void cancel();

 private:
  void run(const std::stop_token& stop);

  const LoadExpert load_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::vector<ep::ExpertMove>> layers_;
  Layer next_;
  int num_packed_ = 0, num_taken_ = 0;
  std::optional<Error> fault_;
  std::jthread thread_;
};

}  // namespace manta::exec
