#pragma once

#include <cstdint>
#include <string_view>

#include "base/tensor.h"

namespace manta::model {

// The index of the first value that is NaN or infinite, -1 if there is none. dtype: kF32, kBF16 or kF8E4M3.
// `bytes` may have any alignment.
int64_t first_not_finite(std::string_view bytes, DType dtype);

}  // namespace manta::model
