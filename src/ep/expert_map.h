// Which expert lives where. Logical experts are the checkpoint's; physical experts are the slots of the EP ranks
// (logical + redundant); rank r of n owns the contiguous slots [r * P / n, (r + 1) * P / n).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace manta::ep {

// One peer of an EP group, as the coordinator announced it.
struct EpPeer {
  int rank = 0;
  std::string address;  // where its transport listens
  std::string host_id;  // boot id + network namespace + /dev/shm identity: equal = same host for `shm`
};

struct EpTopology {
  Epoch epoch;
  int rank = 0;
  int size = 1;
  std::vector<EpPeer> peers;  // [size], by rank
};

// The maps of all MoE layers (main layers, then MTP). Fixed addresses for its lifetime: values change between steps.
struct ExpertMap {
  Epoch epoch;
  int num_layers = 0;
  int num_logical = 0;
  int num_physical = 0;
  int max_replicas = 1;
  std::vector<int32_t> physical_to_logical;    // [num_layers, num_physical]
  std::vector<int32_t> logical_to_physical;    // [num_layers, num_logical, max_replicas], -1 where there is none
  std::vector<int32_t> logical_replica_count;  // [num_layers, num_logical], >= 1
};

// Linear placement: slot p holds expert p, redundant slots repeat experts 0, 1, … (replaced by the first rebalance).
// Fails when the slots do not divide by ep_size.
Result<ExpertMap> linear_expert_map(int num_layers, int num_logical, int num_redundant, int ep_size, Epoch epoch);

// The map of a placement: physical_to_logical is [num_layers, P], P slots a layer. Replicas of an expert are listed by
// slot. Fails, naming layer and expert, when one has no slot or more than max_replicas.
Result<ExpertMap> expert_map_of(int num_layers, int num_logical, int max_replicas,
                                std::vector<int32_t> physical_to_logical, Epoch epoch);

// Tokens routed to each physical expert of one layer, counted where they were routed. Padding and dummy rows never
// count.
struct LayerLoad {
  int layer = 0;
  std::vector<int32_t> tokens;  // [num_physical]
};

// What a rank sent to other ranks in dispatch.
struct Traffic {
  uint64_t rows = 0;  // a token once for every other rank that has experts of it
  uint64_t bytes = 0;
};

}  // namespace manta::ep
