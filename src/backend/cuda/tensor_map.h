// Tensor maps: what the copy engine needs to know of a matrix in device memory. Boxes are 128 bytes wide and land
// swizzled, or as wide as asked for and land as they are; what lies outside the matrix comes as zeros. Host code.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "base/result.h"

namespace manta::backend::cuda {

struct MapShape {
  const void* data = nullptr;                     // 16-byte aligned
  int elem_bytes = 2;                             // 1: bytes, 2: bf16, 4: float
  int64_t columns = 0, rows = 0, row_stride = 0;  // elements; the stride in bytes a multiple of 16
  int64_t planes = 1, plane_stride = 0;           // planes > 1 or plane_stride > 0: three axes
  int box_rows = 64, box_planes = 1;
  int box_columns = 0;  // 0: 128 bytes, swizzled
};

// Finds the driver's encoder; once, before encode_map.
Status prepare_tensor_maps();
bool can_map(const MapShape& shape);
CUtensorMap encode_map(const MapShape& shape);

}  // namespace manta::backend::cuda
