#include "kv/block_hash.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace manta::kv {
namespace {

TEST(BlockHash, IsSipHash128) {
  // vectors_sip128 of the reference code: key 00 01 … 0f, messages "" and 00 01 … 0e.
  const BlockHasher hasher(0x0706050403020100ULL, 0x0f0e0d0c0b0a0908ULL);
  EXPECT_EQ(hasher.root(""), (BlockHash{0xe6a825ba047f81a3ULL, 0x930255c71472f66dULL}));
  std::string bytes;
  for (char c = 0; c < 15; ++c) bytes.push_back(c);
  EXPECT_EQ(hasher.root(bytes), (BlockHash{0x11a8b03399e99354ULL, 0xd9c3cf970fec087eULL}));
}

TEST(BlockHash, DependsOnEveryTokenAndOnTheWholePrefix) {
  const BlockHasher hasher(1, 2);
  const std::vector<TokenId> tokens = {5, 6, 7, 8};
  std::set<BlockHash> seen;
  for (const char* salt : {"", "a", "b"}) {
    const BlockHash root = hasher.root(salt);
    EXPECT_TRUE(seen.insert(hasher.next(root, tokens)).second);
    EXPECT_TRUE(seen.insert(hasher.next(hasher.next(root, tokens), tokens)).second);
    for (size_t i = 0; i < tokens.size(); ++i) {
      auto other = tokens;
      ++other[i];
      EXPECT_TRUE(seen.insert(hasher.next(root, other)).second);
    }
  }
  EXPECT_EQ(hasher.next(hasher.root("a"), tokens), hasher.next(hasher.root("a"), tokens));
}

TEST(BlockHash, KeysAreDrawn) {
  EXPECT_NE(BlockHasher().root("x"), BlockHasher().root("x"));
}

}  // namespace
}  // namespace manta::kv
