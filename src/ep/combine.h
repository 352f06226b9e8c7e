// The one definition of combine's arithmetic on a CPU, for every host transport: a token's value must not depend on
// where its experts live, so nobody writes this sum a second time.
#pragma once

#include <cstdint>
#include <span>

#include "base/tensor.h"

namespace manta::ep {

// One expert's contribution to a token.
struct WeightedRow {
  float weight = 0;
  const void* row = nullptr;  // [D], wire dtype
};

// out[D] f32 = sum of weight x row, added in the order given, in float32. No rows: zeros.
// wire_dtype: kF32 or kBF16.
void combine_row(std::span<const WeightedRow> rows, DType wire_dtype, int64_t hidden_size, float* out);

}  // namespace manta::ep
