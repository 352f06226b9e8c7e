// Byte-pair encoding of one word: start from its bytes, join the neighbouring pair of lowest rank, leftmost first,
// until no pair can be joined.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/ids.h"

namespace manta::text {

class Bpe {
 public:
  struct Merge {
    TokenId left, right, result;
  };

  // byte_ids: the token of each byte, -1 where the vocabulary has none (such bytes give no token). merges in order of
  // rank, all ids >= 0; of a pair listed twice the later rank counts.
  Bpe(std::span<const Merge> merges, const std::array<TokenId, 256>& byte_ids);

  // Working memory of one thread, and the words it met last. Bounded: the cache has a fixed size, and what a very long
  // word needed is given back after it.
  class Scratch;

  // Appends the ids of word (bytes). Time O(n log n) in the length of the word, whatever it holds.
  void encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const;

 private:
  struct Slot {
    uint64_t pair = 0;
    uint32_t rank = 0;  // kNoRank: the slot is free
    TokenId result = -1;
  };
  struct Found {
    uint32_t rank;
    TokenId result;
  };

  void insert(uint64_t pair, uint32_t rank, TokenId result);
  Found find(TokenId left, TokenId right) const;
  void encode_short(Scratch& scratch) const;
  void encode_long(Scratch& scratch) const;

  std::array<TokenId, 256> byte_ids_;
  std::vector<Slot> slots_;  // open addressing, at most half full
  int shift_ = 0;            // 64 - log2(slots)
};

class Bpe::Scratch {
 public:
  Scratch() : cache_(kNumCached) {}

 private:
  friend class Bpe;

  static constexpr size_t kNumCached = 1 << 14;
  static constexpr size_t kMaxCachedBytes = 30;
  static constexpr size_t kMaxCachedIds = 8;
  static constexpr size_t kMaxKeptSymbols = 1 << 16;

  // A cached word fills one cache line; a new word of the same hash overwrites it.
  struct alignas(64) Cached {
    uint8_t num_bytes = 0;  // 0: free
    uint8_t num_ids = 0;
    std::array<char, kMaxCachedBytes> bytes;
    std::array<TokenId, kMaxCachedIds> ids;
  };
  struct Symbol {
    TokenId id;
    int32_t prev, next;  // -1: none
  };
  struct Candidate {
    uint32_t rank;
    int32_t pos;  // of the left symbol
    TokenId left, right, result;
  };

  std::vector<Cached> cache_;
  std::vector<TokenId> ids_;      // in: the bytes' tokens, out: the word's
  std::vector<Found> pairs_;      // short words: pairs_[i] joins ids_[i] and ids_[i + 1]
  std::vector<Symbol> symbols_;   // long words: a linked list
  std::vector<Candidate> queue_;  // long words: a heap
};

}  // namespace manta::text
