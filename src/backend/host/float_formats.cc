#include "backend/host/float_formats.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace manta::backend::host {
namespace {

float decode_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(1.0f + mantissa / 8.0f, exponent - 7);
  return bits & 0x80 ? -magnitude : magnitude;
}

std::array<float, 256> make_e4m3_table() {
  std::array<float, 256> table;
  for (int i = 0; i < 256; ++i) table[i] = decode_e4m3(static_cast<uint8_t>(i));
  return table;
}

const std::array<float, 256> kE4m3 = make_e4m3_table();

constexpr int64_t kWeightBlock = 128;

Status fp8_to_f32(const WeightView& w, float* out) {
  const Tensor& data = w.data;
  if (data.rank != 2) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: an FP8 weight must have two axes", data.describe()));
  }
  const int64_t rows = data.shape[0], cols = data.shape[1];
  const int64_t row_blocks = (rows + kWeightBlock - 1) / kWeightBlock;
  const int64_t col_blocks = (cols + kWeightBlock - 1) / kWeightBlock;
  const Tensor& scale = w.scale_inv;
  if (scale.data == nullptr || scale.dtype != DType::kF32 || scale.rank != 2 || scale.shape[0] != row_blocks ||
      scale.shape[1] != col_blocks || !scale.is_contiguous()) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("{} needs weight_scale_inv F32[{}, {}], found {}", data.describe(), row_blocks, col_blocks,
                             scale.data == nullptr ? "none" : scale.describe()));
  }
  const uint8_t* bytes = static_cast<const uint8_t*>(data.data);
  for (int64_t r = 0; r < rows; ++r) {
    const float* scales = scale.as<float>() + r / kWeightBlock * col_blocks;
    for (int64_t c = 0; c < cols; ++c) out[r * cols + c] = kE4m3[bytes[r * cols + c]] * scales[c / kWeightBlock];
  }
  return {};
}

}  // namespace

float from_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::ldexp(1.0f + mantissa / 1024.0f, exponent - 15);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

float from_e4m3(uint8_t bits) {
  return kE4m3[bits];
}

float round_to_e4m3(float x) {
  const float magnitude = std::fabs(x);
  if (!(magnitude < 448.0f)) return x != x ? x : std::copysign(448.0f, x);
  const int exponent = std::max(magnitude > 0.0f ? std::ilogb(magnitude) : -6, -6);  // -6: the subnormals' exponent
  const float step = std::ldexp(1.0f, exponent - 3);
  return std::nearbyint(x / step) * step;
}

void quantize_group(const float* in, int count, bool ue8m0, float* out) {
  float amax = 0.0f;
  for (int i = 0; i < count; ++i) amax = std::max(amax, std::fabs(in[i]));
  float scale = amax / 448.0f;
  if (ue8m0 && std::isfinite(scale)) {
    int exponent;
    const float fraction = std::frexp(scale, &exponent);  // in [0.5, 1): 0.5 is a power of two already
    scale = scale == 0.0f ? 0.0f : std::ldexp(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
  }
  if (scale == 0.0f) {
    std::fill_n(out, count, 0.0f);
    return;
  }
  for (int i = 0; i < count; ++i) out[i] = round_to_e4m3(in[i] / scale) * scale;
}

Status to_f32(const WeightView& w, float* out) {
  const Tensor& data = w.data;
  if (!data.is_contiguous()) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: a weight must be contiguous", data.describe()));
  }
  const int64_t n = data.num_elements();
  switch (data.dtype) {
    case DType::kF32: std::copy_n(data.as<float>(), n, out); return {};
    case DType::kBF16: std::transform(data.as<uint16_t>(), data.as<uint16_t>() + n, out, from_bf16); return {};
    case DType::kF16: std::transform(data.as<uint16_t>(), data.as<uint16_t>() + n, out, from_f16); return {};
    case DType::kF8E4M3: return fp8_to_f32(w, out);
    default: break;
  }
  return error(ErrorCode::kInvalidArgument, fmt::format("{}: weights are F32, BF16, F16 or F8_E4M3", data.describe()));
}

}  // namespace manta::backend::host
