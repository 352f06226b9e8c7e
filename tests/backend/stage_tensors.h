// Reading, writing and comparing a backend's tensors as floats, whatever their dtype and wherever their memory.
#pragma once

#include <cstdint>
#include <vector>

#include "stage_cases.h"

namespace manta::backend::testing {

std::vector<float> read_floats(const Access& access, const Tensor& t);
// Rounds to the tensor's dtype; returns what was really written. The tensor may be longer than the values.
std::vector<float> write_floats(const Access& access, const Tensor& t, std::vector<float> values);
std::vector<int32_t> read_ints(const Access& access, const Tensor& t, int64_t n);  // the first n
void fill(const Access& access, const Tensor& t, uint8_t byte);

// Relative error |a - b| / |b| of each row in `live`; a fatal failure names the first row above the bound and its worst
// column.
void expect_close(const char* what, const std::vector<float>& a, const std::vector<float>& b, int64_t width,
                  const std::vector<int>& live, double bound);
// Rows from first_row on are still 0xff.
void expect_untouched(const char* what, const Access& access, const Tensor& t, int64_t first_row);

}  // namespace manta::backend::testing
