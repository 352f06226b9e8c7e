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
  std::vector<int32_t> placement;
  for (int layer = 0; layer < num_layers; ++layer) {
    for (int p = 0; p < num_physical; ++p) placement.push_back(p % num_logical);
  }
  return expert_map_of(num_layers, num_logical, num_redundant + 1, std::move(placement), epoch);
}

Result<ExpertMap> expert_map_of(int num_layers, int num_logical, int max_replicas,
                                std::vector<int32_t> physical_to_logical, Epoch epoch) {
  ExpertMap map;
  map.epoch = epoch;
  map.num_layers = num_layers;
  map.num_logical = num_logical;
  map.num_physical = num_layers > 0 ? static_cast<int>(physical_to_logical.size()) / num_layers : 0;
  map.max_replicas = max_replicas;
  map.logical_to_physical.assign(static_cast<size_t>(num_layers) * num_logical * max_replicas, -1);
  map.logical_replica_count.assign(static_cast<size_t>(num_layers) * num_logical, 0);
  for (int layer = 0; layer < num_layers; ++layer) {
    for (int p = 0; p < map.num_physical; ++p) {
      const int32_t logical = physical_to_logical[static_cast<size_t>(layer) * map.num_physical + p];
      if (logical < 0 || logical >= num_logical) {
        return error(ErrorCode::kInvalidArgument,
                     fmt::format("expert map: layer {} slot {} holds expert {}, outside [0, {})", layer, p, logical,
                                 num_logical));
      }
      const size_t row = static_cast<size_t>(layer) * num_logical + logical;
      if (map.logical_replica_count[row] == max_replicas) {
        return error(
            ErrorCode::kInvalidArgument,
            fmt::format("expert map: layer {} expert {} has more than {} replicas", layer, logical, max_replicas));
      }
      map.logical_to_physical[row * max_replicas + map.logical_replica_count[row]++] = p;
    }
    for (int logical = 0; logical < num_logical; ++logical) {
      if (map.logical_replica_count[static_cast<size_t>(layer) * num_logical + logical] == 0) {
        return error(ErrorCode::kInvalidArgument,
                     fmt::format("expert map: layer {} expert {} has no slot", layer, logical));
      }
    }
  }
  map.physical_to_logical = std::move(physical_to_logical);
  return map;
}

}  // namespace manta::ep
