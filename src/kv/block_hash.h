// Names the content of a cache block: its tokens and everything before them. Two blocks with equal hashes hold equal
// rows, so a request may use what another one computed.
//
// SipHash-2-4 with 128 bits and a key drawn when the engine starts: without the key nobody can construct two prompts
// that share a hash, so a hit needs no comparison of tokens and tenants cannot read each other's cache by collision.
// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (the 128-bit variant of its reference code).
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "base/ids.h"

namespace manta::kv {

struct BlockHash {
  uint64_t low = 0;
  uint64_t high = 0;
  auto operator<=>(const BlockHash&) const = default;
};

class BlockHasher {
 public:
  BlockHasher();                                                   // a random key
  BlockHasher(uint64_t key0, uint64_t key1) : key_{key0, key1} {}  // a given one, for tests
  BlockHash root(std::string_view cache_salt) const;               // the parent of a sequence's first block
  BlockHash next(const BlockHash& parent, std::span<const TokenId> tokens) const;

 private:
  uint64_t key_[2];
};

}  // namespace manta::kv

template <>
struct std::hash<manta::kv::BlockHash> {
  size_t operator()(const manta::kv::BlockHash& hash) const noexcept { return hash.low; }
};
