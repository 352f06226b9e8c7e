#include "backend/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "backend/cuda/device.h"

namespace manta::backend::cuda {
namespace {

decltype(&cuTensorMapEncodeTiled) encoder = nullptr;

}  // namespace

Status prepare_tensor_maps() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  MANTA_TRY(
      check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
                 "cuTensorMapEncodeTiled"));
  if (found == nullptr) return error(ErrorCode::kUnavailable, "the driver has no cuTensorMapEncodeTiled");
  encoder = reinterpret_cast<decltype(encoder)>(found);
  return {};
}

bool can_map(const MapShape& s) {
  return reinterpret_cast<uintptr_t>(s.data) % 16 == 0 && s.columns > 0 && s.rows > 0 &&
         s.row_stride * s.elem_bytes % 16 == 0 && s.plane_stride * s.elem_bytes % 16 == 0;
}

CUtensorMap encode_map(const MapShape& s) {
  const uint32_t axes = s.plane_stride > 0 ? 3 : 2;
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(s.columns), static_cast<cuuint64_t>(s.rows),
                              static_cast<cuuint64_t>(s.planes)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(s.row_stride * s.elem_bytes),
                                 static_cast<cuuint64_t>(s.plane_stride * s.elem_bytes)};
  const bool swizzled = s.box_columns == 0;
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(swizzled ? 128 / s.elem_bytes : s.box_columns),
                             static_cast<cuuint32_t>(s.box_rows), static_cast<cuuint32_t>(s.box_planes)};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map = {};
  const auto type = s.elem_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                    : s.elem_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  encoder(&map, type, axes, const_cast<void*>(s.data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
          swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return map;
}

}  // namespace manta::backend::cuda
