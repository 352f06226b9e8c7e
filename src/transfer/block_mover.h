// How bytes get from a peer's cache into ours: the only thing in which the pulling connectors differ.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kv/cache_geometry.h"
#include "transfer/kv_connector.h"
#include "transfer/pull_table.h"

namespace manta::transfer {

// Blocks that follow each other on both sides: one descriptor for each layer.
struct BlockRun {
  BlockId remote = 0;
  BlockId local = 0;
  int count = 0;
  bool operator==(const BlockRun&) const = default;
};
std::vector<BlockRun> coalesce(std::span<const BlockPair> blocks);

// A peer's cache, as far as a mover must know it.
class PeerCache {
 public:
  virtual ~PeerCache() = default;
};

// A read under way. Destroying it ends it: nothing writes to our cache after that.
class BlockTransfer {
 public:
  virtual ~BlockTransfer() = default;
  virtual std::optional<Status> poll() = 0;  // nullopt: not over yet; never waits
};

// register_cache and metadata on any one thread before the rest; the rest on the mover's thread only.
class BlockMover {
 public:
  virtual ~BlockMover() = default;
  virtual Status register_cache(const kv::CacheGeometry& geometry, std::span<const CacheLayer> layers) = 0;
  virtual std::string metadata() const = 0;  // what a peer's mover needs to read here; bytes
  // num_blocks: of the peer, whose geometry is ours otherwise.
  virtual Result<std::unique_ptr<PeerCache>> open(const std::string& metadata, int num_blocks) = 0;
  // All layers of the blocks of `runs`. Blocks are within both caches.
  virtual Result<std::unique_ptr<BlockTransfer>> read(PeerCache& peer, std::span<const BlockRun> runs) = 0;
};

// The peer's cache is mapped into this process; both run on one host, under one user.
std::unique_ptr<BlockMover> make_shared_memory_mover();

}  // namespace manta::transfer
