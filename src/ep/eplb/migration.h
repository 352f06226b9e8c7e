// From one placement of experts to another, a layer at a time.
#pragma once

#include <vector>

#include "ep/expert_map.h"

namespace manta::ep {

// A slot of this rank that gets another expert.
struct ExpertMove {
  int layer = 0;    // row of the map
  int slot = 0;     // of this rank, [0, P / size)
  int logical = 0;  // expert to put there
};

// The layers whose placement changes on any rank, ascending: the order in which all ranks migrate.
std::vector<int> layers_to_migrate(const ExpertMap& now, const ExpertMap& target);

// What one rank has to fetch for a layer, by slot.
std::vector<ExpertMove> moves_of(const ExpertMap& now, const ExpertMap& target, int layer, int rank, int size);

// One layer of `target` becomes current. Maps of the same shape; addresses in `map` stay.
void adopt_layer(ExpertMap& map, const ExpertMap& target, int layer);

}  // namespace manta::ep
