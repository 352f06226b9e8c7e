// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11):
// 128 random bits as a pure function of a key and a counter, with 32-bit multiplies only, so that a GPU thread and a
// CPU loop produce the same bits in any order. Checked against the vectors of Random123.
#pragma once

#include <array>
#include <cstdint>

namespace manta::sample {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

constexpr PhiloxCounter philox4x32(PhiloxKey key, PhiloxCounter counter) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t p1 = uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// The 32 random bits that belong to token `id` when the token at `position` of a sequence is chosen.
// Key: the request's seed. Counter: (position, id / 4, 0, 0); the lane of the output is id % 4.
constexpr uint32_t token_bits(uint64_t seed, int32_t position, int32_t id) {
  const auto block = philox4x32({static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
                                {static_cast<uint32_t>(position), static_cast<uint32_t>(id) / 4, 0, 0});
  return block[static_cast<uint32_t>(id) % 4];
}

// In the open interval (0, 1), symmetric around 1/2, exact in double.
constexpr double open_uniform(uint32_t bits) {
  return (bits + 0.5) * 0x1p-32;
}

}  // namespace manta::sample
