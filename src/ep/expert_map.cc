#include "ep/expert_map.h"

#include <fmt/format.h>

namespace manta::ep {

Result<ExpertMap> linear_expert_map(int num_layers, int num_logical, int num_redundant, int ep_size, Epoch epoch) {
  const int num_physical = num_logical + num_redundant;
  if (ep_size < 1 || num_physical % ep_size != 0) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("{} experts + {} redundant = {} slots: must divide by the EP size {}", num_logical,
                             num_redundant, num_physical, ep_size));
  }
  if (num_redundant < 0 || num_redundant > num_logical * (ep_size - 1)) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("num_redundant_experts {}: must be in [0, {}] ({} experts on {} EP ranks)", num_redundant,
                             num_logical * (ep_size - 1), num_logical, ep_size));
  }
  ExpertMap map;
  map.epoch = epoch;
  map.num_layers = num_layers;
  map.num_logical = num_logical;
  map.num_physical = num_physical;
  map.max_replicas = num_redundant + 1;
  for (int layer = 0; layer < num_layers; ++layer) {
    std::vector<int32_t> slots(static_cast<size_t>(num_logical) * map.max_replicas, -1);
    std::vector<int32_t> count(num_logical, 0);
    for (int p = 0; p < num_physical; ++p) {
      const int logical = p % num_logical;
      map.physical_to_logical.push_back(logical);
      slots[static_cast<size_t>(logical) * map.max_replicas + count[logical]++] = p;
    }
    map.logical_to_physical.insert(map.logical_to_physical.end(), slots.begin(), slots.end());
    map.logical_replica_count.insert(map.logical_replica_count.end(), count.begin(), count.end());
  }
  return map;
}

}  // namespace manta::ep
