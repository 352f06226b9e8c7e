#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>

namespace manta::kv {
namespace {

BlockHash hash_of(uint64_t n) {
  return {n, ~n};
}

std::vector<BlockId> take(BlockPool& pool, int count) {
  std::vector<BlockId> out;
  EXPECT_TRUE(pool.allocate(count, out));
  return out;
}

TEST(BlockPool, GivesAllOrNothing) {
  BlockPool pool(4);
  std::vector<BlockId> out = take(pool, 3);
  EXPECT_FALSE(pool.allocate(2, out));
  EXPECT_EQ(out.size(), 3u);
  EXPECT_EQ(pool.counts(), (BlockCounts{.free = 1, .used = 3}));
  EXPECT_DOUBLE_EQ(pool.usage(), 0.75);
  std::sort(out.begin(), out.end());
  EXPECT_EQ(std::unique(out.begin(), out.end()), out.end());
}

TEST(BlockPool, FindsWhatWasPublishedUntilTheBlockIsNeeded) {
  BlockPool pool(2);
  const auto blocks = take(pool, 2);
  pool.publish(blocks[0], hash_of(1));
  EXPECT_EQ(pool.find(hash_of(1)), blocks[0]);
  pool.release(blocks);
  EXPECT_EQ(pool.counts(), (BlockCounts{.free = 1, .cached = 1}));

  take(pool, 1);  // the free one goes first
  EXPECT_EQ(pool.find(hash_of(1)), blocks[0]);
  EXPECT_EQ(take(pool, 1)[0], blocks[0]);
  EXPECT_EQ(pool.find(hash_of(1)), -1);
}

TEST(BlockPool, ForgetsTheLongestUnusedFirstAndTailsBeforeHeads) {
  BlockPool pool(4);
  const auto first = take(pool, 2), second = take(pool, 2);
  for (int i = 0; i < 2; ++i) {
    pool.publish(first[i], hash_of(10 + i));
    pool.publish(second[i], hash_of(20 + i));
  }
  pool.release(second);
  pool.release(first);
  EXPECT_EQ(take(pool, 4), (std::vector<BlockId>{second[1], second[0], first[1], first[0]}));
}

TEST(BlockPool, AHitSharesTheBlock) {
  BlockPool pool(2);
  const auto blocks = take(pool, 1);
  pool.publish(blocks[0], hash_of(1));
  pool.use(blocks[0]);
  pool.release(blocks);
  EXPECT_EQ(pool.counts().used, 1);
  pool.release(blocks);
  EXPECT_EQ(pool.counts().cached, 1);
  pool.use(pool.find(hash_of(1)));
  EXPECT_EQ(pool.counts(), (BlockCounts{.free = 1, .used = 1}));
}

TEST(BlockPool, TheFirstBlockWithAHashKeepsIt) {
  BlockPool pool(2);
  const auto blocks = take(pool, 2);
  pool.publish(blocks[0], hash_of(1));
  pool.publish(blocks[1], hash_of(1));
  EXPECT_EQ(pool.find(hash_of(1)), blocks[0]);
  pool.release(blocks);
  EXPECT_EQ(pool.counts(), (BlockCounts{.free = 1, .cached = 1}));
}

TEST(BlockPool, HeldBlocksAreNotGivenAway) {
  BlockPool pool(2);
  const auto blocks = take(pool, 2);
  pool.publish(blocks[0], hash_of(1));
  pool.hold(blocks);
  pool.release(blocks);
  EXPECT_EQ(pool.counts(), (BlockCounts{.held = 2}));
  std::vector<BlockId> none;
  EXPECT_FALSE(pool.allocate(1, none));
  pool.use(pool.find(hash_of(1)));  // but they may be shared
  EXPECT_EQ(pool.counts(), (BlockCounts{.used = 1, .held = 1}));
  pool.unhold(blocks);
  EXPECT_EQ(pool.counts(), (BlockCounts{.free = 1, .used = 1}));
}

TEST(BlockPool, ForgottenBlocksInUseKeepTheirRows) {
  BlockPool pool(2);
  const auto blocks = take(pool, 2);
  pool.publish(blocks[0], hash_of(1));
  pool.publish(blocks[1], hash_of(2));
  pool.release({&blocks[1], 1});
  for (const BlockId block : blocks) pool.forget(block);
  EXPECT_EQ(pool.find(hash_of(1)), -1);
  EXPECT_EQ(pool.find(hash_of(2)), -1);
  EXPECT_EQ(pool.counts(), (BlockCounts{.free = 1, .used = 1}));
}

// After any history the counts are those of a slow model of the same rules.
TEST(BlockPool, CountsAddUpAfterAnyHistory) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 rng(seed);
    const int num_blocks = 1 + static_cast<int>(rng() % 40);
    BlockPool pool(num_blocks);
    std::deque<std::vector<BlockId>> requests, held;
    std::map<uint64_t, int> published;
    for (int i = 0; i < 2000; ++i) {
      switch (rng() % 7) {
        case 0:
        case 1: {
          std::vector<BlockId> blocks;
          const int want = static_cast<int>(rng() % 6);
          const bool could = want <= pool.num_available();
          ASSERT_EQ(pool.allocate(want, blocks), could);
          if (could) requests.push_back(blocks);
          break;
        }
        case 2: {
          if (requests.empty() || requests.front().empty()) break;
          pool.publish(requests.front()[0], hash_of(rng() % 50));
          break;
        }
        case 3: {
          const BlockId hit = pool.find(hash_of(rng() % 50));
          if (hit < 0) break;
          pool.use(hit);
          requests.push_back({hit});
          break;
        }
        case 4:
        case 5: {
          if (requests.empty()) break;
          std::swap(requests.front(), requests[rng() % requests.size()]);
          if (rng() % 3 == 0) {
            pool.hold(requests.front());
            held.push_back(requests.front());
          }
          pool.release(requests.front());
          requests.pop_front();
          break;
        }
        case 6: {
          if (held.empty()) break;
          pool.unhold(held.front());
          held.pop_front();
          break;
        }
      }
      ASSERT_EQ(pool.counts(), pool.recount());
      ASSERT_EQ(pool.counts().all(), num_blocks);
      std::vector<bool> used(num_blocks), keeps(num_blocks);
      for (const auto& blocks : requests)
        for (BlockId block : blocks) used[block] = true;
      for (const auto& blocks : held)
        for (BlockId block : blocks) keeps[block] = true;
      int num_used = 0, num_held = 0;
      for (int b = 0; b < num_blocks; ++b) {
        num_used += used[b];
        num_held += keeps[b] && !used[b];
      }
      ASSERT_EQ(pool.counts().used, num_used);
      ASSERT_EQ(pool.counts().held, num_held);
    }
    for (const auto& blocks : requests) pool.release(blocks);
    for (const auto& blocks : held) pool.unhold(blocks);
    EXPECT_EQ(pool.num_available(), num_blocks);
  }
}

}  // namespace
}  // namespace manta::kv
