#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace manta::text {

namespace {

constexpr uint32_t kNoRank = UINT32_MAX;
// Up to here all pairs are scanned for the lowest rank instead of keeping a heap. bench/tokenizer_bench on Chinese
// text, whose words are long, gives the same speed from 32 to 96 and less beyond.
constexpr size_t kMaxShortWord = 64;

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t x) {
  x *= 0x9E3779B97F4A7C15ULL;
  return x ^ (x >> 32);
}

uint64_t hash_word(std::string_view word) {
  uint64_t hash = word.size();
  size_t pos = 0;
  for (; pos + 8 <= word.size(); pos += 8) {
    uint64_t chunk;
    std::memcpy(&chunk, word.data() + pos, 8);
    hash = mix(hash ^ chunk);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, word.data() + pos, word.size() - pos);
  return mix(mix(hash ^ tail));
}

template <typename T>
void trim(std::vector<T>& v, size_t max_kept) {
  if (v.capacity() > max_kept) std::vector<T>().swap(v);
}

}  // namespace

Bpe::Bpe(std::span<const Merge> merges, const std::array<TokenId, 256>& byte_ids) : byte_ids_(byte_ids) {
  const size_t num_slots = std::bit_ceil(std::max<size_t>(2 * merges.size(), 16));
  slots_.resize(num_slots, Slot{.rank = kNoRank});
  shift_ = 64 - std::countr_zero(num_slots);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    insert(pair_key(merges[rank].left, merges[rank].right), static_cast<uint32_t>(rank), merges[rank].result);
  }
}

void Bpe::insert(uint64_t pair, uint32_t rank, TokenId result) {
  size_t slot = (pair * 0x9E3779B97F4A7C15ULL) >> shift_;
  while (slots_[slot].rank != kNoRank && slots_[slot].pair != pair) slot = (slot + 1) & (slots_.size() - 1);
  slots_[slot] = {pair, rank, result};
}

Bpe::Found Bpe::find(TokenId left, TokenId right) const {
  const uint64_t pair = pair_key(left, right);
  size_t slot = (pair * 0x9E3779B97F4A7C15ULL) >> shift_;
  while (slots_[slot].rank != kNoRank) {
    if (slots_[slot].pair == pair) return {slots_[slot].rank, slots_[slot].result};
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return {kNoRank, -1};
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  Scratch::Cached* cached = nullptr;
  if (word.size() <= Scratch::kMaxCachedBytes) {
    cached = &scratch.cache_[hash_word(word) & (Scratch::kNumCached - 1)];
    if (cached->num_bytes == word.size() && std::memcmp(cached->bytes.data(), word.data(), word.size()) == 0) {
      out.insert(out.end(), cached->ids.begin(), cached->ids.begin() + cached->num_ids);
      return;
    }
  }
  auto& ids = scratch.ids_;
  ids.clear();
  for (const char c : word) {
    if (const TokenId id = byte_ids_[static_cast<uint8_t>(c)]; id >= 0) ids.push_back(id);
  }
  if (ids.size() <= kMaxShortWord) {
    encode_short(scratch);
  } else {
    encode_long(scratch);
  }
  out.insert(out.end(), ids.begin(), ids.end());
  if (cached != nullptr && ids.size() <= Scratch::kMaxCachedIds) {
    cached->num_bytes = static_cast<uint8_t>(word.size());
    cached->num_ids = static_cast<uint8_t>(ids.size());
    std::copy(word.begin(), word.end(), cached->bytes.begin());
    std::copy(ids.begin(), ids.end(), cached->ids.begin());
  }
  trim(ids, Scratch::kMaxKeptSymbols);
}

void Bpe::encode_short(Scratch& scratch) const {
  auto& ids = scratch.ids_;
  auto& pairs = scratch.pairs_;
  pairs.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) pairs.push_back(find(ids[i], ids[i + 1]));
  while (!pairs.empty()) {
    const auto by_rank = [](const Found& a, const Found& b) { return a.rank < b.rank; };
    const auto best = static_cast<size_t>(std::min_element(pairs.begin(), pairs.end(), by_rank) - pairs.begin());
    if (pairs[best].rank == kNoRank) return;
    ids[best] = pairs[best].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) pairs[best - 1] = find(ids[best - 1], ids[best]);
    if (best < pairs.size()) pairs[best] = find(ids[best], ids[best + 1]);
  }
}

void Bpe::encode_long(Scratch& scratch) const {
  auto& ids = scratch.ids_;
  auto& symbols = scratch.symbols_;
  auto& queue = scratch.queue_;
  // Heap of the std algorithms: the greatest on top, so "later" compares greater pairs as less.
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.pos > b.pos;
  };
  const auto candidate_at = [&](int32_t pos) {
    const TokenId left = symbols[pos].id, right = symbols[symbols[pos].next].id;
    const Found found = find(left, right);
    return Scratch::Candidate{found.rank, pos, left, right, found.result};
  };
  const auto push = [&](int32_t pos) {
    if (pos < 0 || symbols[pos].next < 0) return;
    if (const auto candidate = candidate_at(pos); candidate.rank != kNoRank) {
      queue.push_back(candidate);
      std::push_heap(queue.begin(), queue.end(), later);
    }
  };

  const auto count = static_cast<int32_t>(ids.size());
  symbols.clear();
  for (int32_t i = 0; i < count; ++i) symbols.push_back({ids[i], i - 1, i + 1 < count ? i + 1 : -1});
  queue.clear();
  for (int32_t i = 0; i + 1 < count; ++i) {
    if (const auto candidate = candidate_at(i); candidate.rank != kNoRank) queue.push_back(candidate);
  }
  std::make_heap(queue.begin(), queue.end(), later);
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), later);
    const auto top = queue.back();
    queue.pop_back();
    Scratch::Symbol& left = symbols[top.pos];
    // Stale when a merge since then changed either side (a symbol that was merged away has id -1).
    if (left.id != top.left || left.next < 0 || symbols[left.next].id != top.right) continue;
    Scratch::Symbol& right = symbols[left.next];
    left.id = top.result;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].prev = top.pos;
    right.id = -1;
    push(left.prev);
    push(top.pos);
  }
  ids.clear();
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
  trim(symbols, Scratch::kMaxKeptSymbols);
  trim(queue, Scratch::kMaxKeptSymbols);
}

}  // namespace manta::text
