// Where the rows of one expert stand, for both kinds of products.
#pragma once

#include <cstdint>

#include "backend/cuda/gemm/block_gemm.h"

namespace manta::backend::cuda {

// What one group of rows is to a pass.
struct GroupRows {
  int num_rows = 0;
  int64_t batch_row = 0;  // first row in the expert batch
  int64_t inner_row = 0;  // first row in the packed buffer
};

__device__ __forceinline__ GroupRows group_rows(const RowGroups& r, int group) {
  GroupRows out;
  if (r.masked) {
    out.num_rows = min(max(r.counts[group] - r.window_begin, 0), r.window_rows);
    out.batch_row = group * r.plane + r.window_begin;
    out.inner_row = int64_t{group} * r.window_rows;
  } else {
    const int begin = max(r.counts[group], r.window_begin);
    const int end = min(r.counts[group + 1], r.window_begin + r.window_rows);
    out.num_rows = max(end - begin, 0);
    out.batch_row = begin;
    out.inner_row = begin - r.window_begin;
  }
  return out;
}

}  // namespace manta::backend::cuda
