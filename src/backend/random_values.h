// Matrices that nobody stored (`--load-format dummy`): every value follows from a key and its place, eight bytes at a
// time. Written once, so that a backend that makes them on its device gets the host's bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace manta::backend {

// F8_E4M3 or BF16, as the tensor says. BF16 values are uniform around 0.
struct RandomMatrix {
  uint64_t key = 0;
  float deviation = 0.0f;  // standard deviation of bf16 values
};

constexpr uint64_t mix64(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// Every code but the two of NaN.
constexpr uint64_t random_fp8_word(uint64_t key, uint64_t i) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7fULL, kOne = 0x0101010101010101ULL;
  const uint64_t x = mix64(key + i);
  const uint64_t is_nan = (((x & kLow) + kOne) >> 7) & kOne;  // per byte: its low seven bits are all ones
  return x & ~is_nan;
}

inline float uniform_step(float deviation) {
  return 2.0f * std::sqrt(3.0f) * deviation / 65536.0f;
}

// Four values; cut, not rounded, to bf16. With a center of 0 a fused multiply-add changes nothing.
constexpr uint64_t random_bf16_word(uint64_t key, uint64_t i, float center, float step) {
  const uint64_t x = mix64(key + i);
  uint64_t out = 0;
  for (int bit = 0; bit < 64; bit += 16) {
    const float u = static_cast<float>(static_cast<int>(x >> bit & 0xffff) - 32768) + 0.5f;
    out |= static_cast<uint64_t>(std::bit_cast<uint32_t>(center + u * step) >> 16) << bit;
  }
  return out;
}

}  // namespace manta::backend
