// Where experts live while ranks of the group are missing: a pure function of the placement of the whole group, so that
// all survivors come to the same one, and to the old one when the missing ranks are back.
#pragma once

#include <vector>

#include "base/result.h"
#include "ep/expert_map.h"

namespace manta::ep {

// Slots of a rank with `num_there` ranks: as many as in the whole group of `size`, more where those cannot hold all
// experts.
int slots_with(const ExpertMap& whole, int size, int num_there);

// there: ranks of the whole group of `size`, ascending; the i-th owns the i-th run of slots. Everybody keeps what it
// has in the same slots. Experts that only missing ranks had go to the added slots, then in place of experts that
// somebody else has too; what is left of the added slots repeats experts.
Result<ExpertMap> map_of_survivors(const ExpertMap& whole, int size, const std::vector<int>& there, Epoch epoch);

// The placement of the whole group when the others come back to ranks `there` that moved experts meanwhile, to `now`:
// these keep what they have, so that only the others load much. Slots of the others are as in `whole`, but for experts
// that nobody would have else.
Result<ExpertMap> map_of_reunion(const ExpertMap& whole, int size, const std::vector<int>& there, const ExpertMap& now);

}  // namespace manta::ep
