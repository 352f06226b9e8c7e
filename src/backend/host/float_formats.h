// The narrow float formats of checkpoints, and DeepSeek's FP8 block scaling, one value at a time. This is the plain
// definition; a backend with vector code of its own must give the same bits.
#pragma once

#include <bit>
#include <cstdint>

#include "backend/weights.h"
#include "base/result.h"

namespace manta::backend::host {

inline float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// To nearest, ties to even; a NaN stays one.
inline uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_f16(uint16_t bits);

// e4m3fn: no infinities, NaN is 0x7f and 0xff, largest 448.
float from_e4m3(uint8_t bits);
// The nearest e4m3 value as a float, ties to even; beyond 448 it saturates, as DeepSeek's kernels do.
float round_to_e4m3(float x);

// One group of DeepSeek's dynamic activation quantisation (act_quant: 1 x 128 values, scale = amax / 448, with ue8m0
// rounded up to a power of two), quantised and multiplied back. A group of zeros stays zero. count <= 128; in and out
// may be the same.
constexpr int kQuantGroup = 128;
void quantize_group(const float* in, int count, bool ue8m0, float* out);

// A stored matrix or vector as float32, row-major; FP8 blocks of 128 x 128 times their scale_inv.
// out holds data.num_elements() floats. Fails on other dtypes and on scales of the wrong shape, saying which.
Status to_f32(const WeightView& weight, float* out);

}  // namespace manta::backend::host
