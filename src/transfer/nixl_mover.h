#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "transfer/block_mover.h"

namespace manta::transfer {

struct NixlOptions {
  std::string library;                          // path of libnixl_capi.so; empty: looked for
  std::string name;                             // of this agent; unique among all that meet
  std::vector<std::string> backends = {"UCX"};  // NIXL's plugins
  int num_threads = 4;                          // of a backend that has workers: bounds what it takes of the NIC
};

// Reads over the real NIXL: one descriptor for each layer and run of blocks, posted as one request.
Result<std::unique_ptr<BlockMover>> make_nixl_mover(const NixlOptions& options);

}  // namespace manta::transfer
