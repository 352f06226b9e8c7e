#include "exec/expert_placement.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/log.h"
#include "ep/survivors.h"

namespace manta::exec {

ExpertPlacement::ExpertPlacement(ep::ExpertMap& map, Parts parts)
    : map_(map), parts_(std::move(parts)), whole_(map), there_(parts_.size) {
  std::iota(there_.begin(), there_.end(), 0);
  const int num_local = map.num_physical / parts_.size;
  for (int layer = 0; layer < map.num_layers; ++layer) {
    const auto first = map.physical_to_logical.begin() + layer * map.num_physical + parts_.rank * num_local;
    held_.emplace_back(first, first + num_local);
  }
}

int ExpertPlacement::num_slots(int num_there) const {
  return ep::slots_with(whole_, parts_.size, num_there);
}

Result<ep::ExpertMap*> ExpertPlacement::whole() {
  if (is_whole()) {
    whole_ = map_;
  } else if (!there_.empty() && map_.physical_to_logical != adopted_) {
    MANTA_ASSIGN(whole_, ep::map_of_reunion(whole_, parts_.size, there_, map_));
  }
  return &whole_;
}

Status ExpertPlacement::adopt(const std::vector<int>& there, Epoch epoch) {
  MANTA_ASSIGN(ep::ExpertMap target, ep::map_of_survivors(whole_, parts_.size, there, epoch));
  const auto place = std::find(there.begin(), there.end(), parts_.rank) - there.begin();
  const int num_local = target.num_physical / static_cast<int>(there.size());
  there_.clear();  // until all is there, the map is nobody's
  int num_loaded = 0;
  for (int layer = 0; layer < target.num_layers; ++layer) {
    held_[layer].resize(num_local, -1);
    parts_.resize(layer, num_local);
    const int32_t* wanted = &target.physical_to_logical[static_cast<size_t>(layer) * target.num_physical +
                                                        static_cast<size_t>(place) * num_local];
    for (int slot = 0; slot < num_local; ++slot) {
      if (held_[layer][slot] == wanted[slot]) continue;
      MANTA_ASSIGN(backend::MlpWeights weights, parts_.load(layer, wanted[slot]));
      put({layer, slot, wanted[slot]}, std::move(weights));
      ++num_loaded;
    }
  }
  if (num_loaded > 0) {
    spdlog::info("rank {}: loaded {} experts for a group of {} of {} ranks", parts_.rank, num_loaded, there.size(),
                 parts_.size);
  }
  there_ = there;
  map_ = is_whole() ? whole_ : std::move(target);  // with room for the replicas of any rearrangement
  map_.epoch = epoch;
  adopted_ = map_.physical_to_logical;
  return {};
}

void ExpertPlacement::put(const ep::ExpertMove& move, backend::MlpWeights weights) {
  held_[move.layer][move.slot] = move.logical;
  parts_.put(move.layer, move.slot, std::move(weights));
}

}  // namespace manta::exec
