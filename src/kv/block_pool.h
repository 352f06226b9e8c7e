// Hands out the blocks of the paged cache and remembers what they hold. Every block is in one of four states:
//
//   free    holds nothing anybody can find
//   cached  nobody uses it, but its hash finds it; taken for new content when no free block is left, the one that was
//           given back the longest ago first
//   used    one or more requests have it in their block tables
//   held    only a KV connector keeps it, for a peer that still reads it
//
// free + cached + used + held = all, always. Every operation costs O(1) per block. Giving back what was not taken is a
// bug and stops the process in every build. One thread only.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "kv/block_hash.h"

namespace manta::kv {

struct BlockCounts {
  int free = 0;
  int cached = 0;
  int used = 0;
  int held = 0;
  int all() const { return free + cached + used + held; }
  bool operator==(const BlockCounts&) const = default;
};

class BlockPool {
 public:
  explicit BlockPool(int num_blocks);

  int num_blocks() const { return static_cast<int>(blocks_.size()); }
  const BlockCounts& counts() const { return counts_; }
  int num_available() const { return counts_.free + counts_.cached; }  // what allocate() can give
  double usage() const;                                                // (used + held) / all

  // Appends `count` blocks to `out`, each with one reference; all or none. Cached content may be forgotten for it.
  bool allocate(int count, std::vector<BlockId>& out);

  // ---- prefix cache ----------------------------------------------------------------------------------------------
  BlockId find(const BlockHash& hash) const;                                // -1: nobody has it
  bool is_unused(BlockId block) const { return !blocks_[block].in_use(); }  // using it makes one block less available
  void use(BlockId block);  // one more reference, for a block that find() gave
  // The block's rows are written, or will be before any later step reads them. The first block with a hash keeps it:
  // a second one with the same content stays nameless and becomes free when it is given back.
  void publish(BlockId block, const BlockHash& hash);
  void forget(BlockId block);  // what it holds is not what its hash says; no-op for nameless blocks

  // ---- giving back -----------------------------------------------------------------------------------------------
  void release(std::span<const BlockId> blocks);  // one reference each; the last block is forgotten first
  void hold(std::span<const BlockId> blocks);     // a connector's reference, on blocks in use or held
  void unhold(std::span<const BlockId> blocks);

  BlockCounts recount() const;  // O(all), from the blocks themselves; equals counts()

 private:
  struct Block {
    int32_t num_users = 0;
    int32_t num_holds = 0;
    BlockId prev = -1;  // neighbours in the list it is in, when nobody has it
    BlockId next = -1;
    bool published = false;
    BlockHash hash;
    bool in_use() const { return num_users + num_holds > 0; }
  };
  // Doubly linked through the blocks: taking one out of the middle is what a prefix hit does.
  struct List {
    BlockId head = -1;
    BlockId tail = -1;
  };

  int& count_of(const Block& block);
  List& list_of(const Block& block) { return block.published ? cached_ : free_; }
  void push_back(List& list, BlockId id);
  void remove(List& list, BlockId id);
  void add(BlockId id, int users, int holds);  // every change of the two numbers
  BlockId take_one();

  std::vector<Block> blocks_;
  std::unordered_map<BlockHash, BlockId> index_;
  List free_;
  List cached_;
  BlockCounts counts_;
};

}  // namespace manta::kv
