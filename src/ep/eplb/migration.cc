#include "ep/eplb/migration.h"

#include <algorithm>
#include <cassert>

namespace manta::ep {

namespace {

const int32_t* slots_of(const ExpertMap& map, int layer) {
  return map.physical_to_logical.data() + static_cast<size_t>(layer) * map.num_physical;
}

void copy_row(std::vector<int32_t>& to, const std::vector<int32_t>& from, int layer, int length) {
  const size_t first = static_cast<size_t>(layer) * length;
  std::copy_n(from.begin() + static_cast<ptrdiff_t>(first), length, to.begin() + static_cast<ptrdiff_t>(first));
}

}  // namespace

std::vector<int> layers_to_migrate(const ExpertMap& now, const ExpertMap& target) {
  std::vector<int> layers;
  for (int layer = 0; layer < now.num_layers; ++layer) {
    const int32_t* from = slots_of(now, layer);
    if (!std::equal(from, from + now.num_physical, slots_of(target, layer))) layers.push_back(layer);
  }
  return layers;
}

std::vector<ExpertMove> moves_of(const ExpertMap& now, const ExpertMap& target, int layer, int rank, int size) {
  std::vector<ExpertMove> moves;
  const int num_local = now.num_physical / size;
  for (int slot = 0; slot < num_local; ++slot) {
    const int physical = rank * num_local + slot;
    const int32_t logical = slots_of(target, layer)[physical];
    if (slots_of(now, layer)[physical] != logical) moves.push_back({layer, slot, logical});
  }
  return moves;
}

void adopt_layer(ExpertMap& map, const ExpertMap& target, int layer) {
  assert(map.num_physical == target.num_physical && map.max_replicas == target.max_replicas);
  copy_row(map.physical_to_logical, target.physical_to_logical, layer, map.num_physical);
  copy_row(map.logical_to_physical, target.logical_to_physical, layer, map.num_logical * map.max_replicas);
  copy_row(map.logical_replica_count, target.logical_replica_count, layer, map.num_logical);
}

}  // namespace manta::ep
