#include "ep/combine.h"

#include <bit>
#include <cassert>
#include <cstring>

namespace manta::ep {

namespace {

float widen(float x) {
  return x;
}
float widen(uint16_t bf16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16);
}

template <typename Value>
void add(float weight, const void* row, int64_t n, float* out) {
  const auto* values = static_cast<const Value*>(row);
  for (int64_t i = 0; i < n; ++i) out[i] += weight * widen(values[i]);
}

}  // namespace

void combine_row(std::span<const WeightedRow> rows, DType wire_dtype, int64_t hidden_size, float* out) {
  assert(wire_dtype == DType::kF32 || wire_dtype == DType::kBF16);
  std::memset(out, 0, static_cast<size_t>(hidden_size) * sizeof(float));
  for (const WeightedRow& r : rows) {
    if (wire_dtype == DType::kF32) {
      add<float>(r.weight, r.row, hidden_size, out);
    } else {
      add<uint16_t>(r.weight, r.row, hidden_size, out);
    }
  }
}

}  // namespace manta::ep
