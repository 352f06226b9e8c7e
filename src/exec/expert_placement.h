// Which experts this rank holds, and where all of them are: the placement of the whole group, and while ranks are
// missing the one that the others go on with. Weights that a change needs are read from the checkpoint.
#pragma once

#include <functional>
#include <vector>

#include "backend/weights.h"
#include "base/result.h"
#include "ep/eplb/migration.h"
#include "ep/expert_map.h"
#include "exec/expert_mover.h"

namespace manta::exec {

class ExpertPlacement {
 public:
  struct Parts {
    int rank = 0, size = 1;  // of the whole group
    LoadExpert load;
    // What the model computes with, between steps: the expert of a local slot, how many slots a layer has.
    std::function<void(int layer, int slot, backend::MlpWeights weights)> put;
    std::function<void(int layer, int num_slots)> resize;
  };

  // `map`: the whole group's, as loaded; changed in place between steps.
  ExpertPlacement(ep::ExpertMap& map, Parts parts);

  // Slots of a rank when so many are there.
  int num_slots(int num_there) const;
  // The placement to return to when nobody is missing. Rearranging experts changes the map, and this with it.
  Result<ep::ExpertMap*> whole();
  // The group's ranks are these, ascending, and whole() is what they agreed on: loads what this rank lacks. On an error
  // the map is not valid for any step, and a later call goes on from what is held.
  Status adopt(const std::vector<int>& there, Epoch epoch);
  // One expert of a rearrangement.
  void put(const ep::ExpertMove& move, backend::MlpWeights weights);

 private:
  bool is_whole() const { return static_cast<int>(there_.size()) == parts_.size; }

  ep::ExpertMap& map_;
  const Parts parts_;
  ep::ExpertMap whole_;
  std::vector<int> there_;                  // ranks that map_ is for
  std::vector<int32_t> adopted_;            // what map_ began as
  std::vector<std::vector<int32_t>> held_;  // [layers][local slots] logical expert, -1: none
};

}  // namespace manta::exec
