#include "kv/block_pool.h"

#include <cassert>

namespace manta::kv {

BlockPool::BlockPool(int num_blocks) : blocks_(num_blocks) {
  index_.reserve(num_blocks);
  counts_.free = num_blocks;
  for (BlockId id = 0; id < num_blocks; ++id) push_back(free_, id);
}

double BlockPool::usage() const {
  return blocks_.empty() ? 0.0 : static_cast<double>(counts_.used + counts_.held) / static_cast<double>(num_blocks());
}

bool BlockPool::allocate(int count, std::vector<BlockId>& out) {
  if (count > num_available()) return false;
  for (int i = 0; i < count; ++i) out.push_back(take_one());
  return true;
}

BlockId BlockPool::take_one() {
  const BlockId id = free_.head >= 0 ? free_.head : cached_.head;
  forget(id);
  add(id, 1, 0);
  return id;
}

BlockId BlockPool::find(const BlockHash& hash) const {
  const auto it = index_.find(hash);
  return it == index_.end() ? -1 : it->second;
}

void BlockPool::use(BlockId block) {
  add(block, 1, 0);
}

void BlockPool::publish(BlockId id, const BlockHash& hash) {
  Block& block = blocks_[id];
  assert(block.num_users > 0);
  if (block.published || !index_.try_emplace(hash, id).second) return;
  block.published = true;
  block.hash = hash;
}

void BlockPool::forget(BlockId id) {
  Block& block = blocks_[id];
  if (!block.published) return;
  index_.erase(block.hash);
  if (block.in_use()) {
    block.published = false;
    return;
  }
  remove(cached_, id);
  --counts_.cached;
  block.published = false;
  push_back(free_, id);
  ++counts_.free;
}

void BlockPool::release(std::span<const BlockId> blocks) {
  for (size_t i = blocks.size(); i-- > 0;) {
    assert(blocks_[blocks[i]].num_users > 0);
    add(blocks[i], -1, 0);
  }
}

void BlockPool::hold(std::span<const BlockId> blocks) {
  for (BlockId id : blocks) {
    assert(blocks_[id].in_use());
    add(id, 0, 1);
  }
}

void BlockPool::unhold(std::span<const BlockId> blocks) {
  for (size_t i = blocks.size(); i-- > 0;) {
    assert(blocks_[blocks[i]].num_holds > 0);
    add(blocks[i], 0, -1);
  }
}

int& BlockPool::count_of(const Block& block) {
  if (block.num_users > 0) return counts_.used;
  if (block.num_holds > 0) return counts_.held;
  return block.published ? counts_.cached : counts_.free;
}

void BlockPool::add(BlockId id, int users, int holds) {
  Block& block = blocks_[id];
  const bool was_in_use = block.in_use();
  --count_of(block);
  if (!was_in_use) remove(list_of(block), id);
  block.num_users += users;
  block.num_holds += holds;
  if (!block.in_use()) push_back(list_of(block), id);
  ++count_of(block);
}

void BlockPool::push_back(List& list, BlockId id) {
  blocks_[id].prev = list.tail;
  blocks_[id].next = -1;
  (list.tail >= 0 ? blocks_[list.tail].next : list.head) = id;
  list.tail = id;
}

void BlockPool::remove(List& list, BlockId id) {
  const Block& block = blocks_[id];
  (block.prev >= 0 ? blocks_[block.prev].next : list.head) = block.next;
  (block.next >= 0 ? blocks_[block.next].prev : list.tail) = block.prev;
}

BlockCounts BlockPool::recount() const {
  BlockCounts out;
  for (const Block& block : blocks_) {
    if (block.num_users > 0) {
      ++out.used;
    } else if (block.num_holds > 0) {
      ++out.held;
    } else {
      ++(block.published ? out.cached : out.free);
    }
  }
  return out;
}

}  // namespace manta::kv
