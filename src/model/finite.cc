#include "model/finite.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace manta::model {

namespace {

// Every checkpoint byte passes here, so whole blocks are tested without a branch (the compiler vectorises the inner
// loop) and only a block that has a bad value is searched.
template <typename Word, Word kExponent>
int64_t scan(std::string_view bytes) {
  constexpr size_t kBlock = 256;
  const size_t count = bytes.size() / sizeof(Word);
  for (size_t base = 0; base < count; base += kBlock) {
    Word block[kBlock] = {};
    const size_t n = std::min(kBlock, count - base);
    std::memcpy(block, bytes.data() + base * sizeof(Word), n * sizeof(Word));
    Word bad = 0;
    for (size_t i = 0; i < kBlock; ++i) bad |= static_cast<Word>((block[i] & kExponent) == kExponent);
    if (bad == 0) continue;
    for (size_t i = 0; i < n; ++i) {
      if ((block[i] & kExponent) == kExponent) return static_cast<int64_t>(base + i);
    }
  }
  return -1;
}

}  // namespace

int64_t first_not_finite(std::string_view bytes, DType dtype) {
  switch (dtype) {
    case DType::kF32: return scan<uint32_t, 0x7f800000u>(bytes);
    case DType::kBF16: return scan<uint16_t, 0x7f80u>(bytes);
    case DType::kF8E4M3: return scan<uint8_t, 0x7fu>(bytes);  // e4m3fn: one NaN code per sign, no infinity
    default: assert(false && "not a floating dtype of a checkpoint"); return 0;
  }
}

}  // namespace manta::model
