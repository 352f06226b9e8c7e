#include "stage_tensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/host/float_formats.h"

namespace manta::backend::testing {

std::vector<float> read_floats(const Access& access, const Tensor& t) {
  std::vector<float> out(t.num_elements());
  std::vector<uint8_t> bytes(out.size() * dtype_bytes(t.dtype));
  access.read(bytes.data(), t);
  Tensor host = t;
  host.data = bytes.data();
  EXPECT_TRUE(host::to_f32({host, {}}, out.data()).ok()) << t.describe();
  return out;
}

std::vector<float> write_floats(const Access& access, const Tensor& t, std::vector<float> values) {
  if (t.dtype == DType::kBF16) {
    std::vector<uint16_t> bits(values.size());
    std::transform(values.begin(), values.end(), bits.begin(), host::to_bf16);
    std::transform(bits.begin(), bits.end(), values.begin(), host::from_bf16);
    access.write(t, bits.data());
  } else {
    EXPECT_EQ(t.dtype, DType::kF32) << "test does not write " << t.describe();
    access.write(t, values.data());
  }
  return values;
}

std::vector<int32_t> read_ints(const Access& access, const Tensor& t, int64_t n) {
  std::vector<int32_t> out(t.num_elements());
  access.read(out.data(), t);
  out.resize(n);
  return out;
}

void fill(const Access& access, const Tensor& t, uint8_t byte) {
  const std::vector<uint8_t> bytes(t.num_elements() * dtype_bytes(t.dtype), byte);
  access.write(t, bytes.data());
}

void expect_close(const char* what, const std::vector<float>& a, const std::vector<float>& b, int64_t width,
                  const std::vector<int>& live, double bound) {
  ASSERT_GE(a.size(), live.empty() ? 0 : (live.back() + 1) * width) << what;
  for (int r : live) {
    double error = 0, norm = 0, worst = -1;
    int64_t column = 0;
    for (int64_t c = 0; c < width; ++c) {
      const double x = a[r * width + c], y = b[r * width + c], d = std::fabs(x - y);
      error += d * d;
      norm += y * y;
      if (!(d <= worst)) worst = d, column = c;
    }
    const double relative = std::sqrt(error / std::max(norm, 1e-30));
    ASSERT_TRUE(relative <= bound) << what << ": relative error " << relative << " above " << bound << ", first at row "
                                   << r << ", most in column " << column << ": " << a[r * width + column]
                                   << ", ref has " << b[r * width + column];
  }
}

void expect_untouched(const char* what, const Access& access, const Tensor& t, int64_t first_row) {
  if (t.data == nullptr || first_row >= t.shape[0]) return;
  const int64_t row_bytes = t.num_elements() / t.shape[0] * dtype_bytes(t.dtype);
  std::vector<uint8_t> bytes(t.shape[0] * row_bytes);
  access.read(bytes.data(), t);
  const auto changed =
      std::find_if(bytes.begin() + first_row * row_bytes, bytes.end(), [](uint8_t b) { return b != 0xff; });
  EXPECT_EQ(changed, bytes.end()) << what << ": row " << (changed - bytes.begin()) / row_bytes
                                  << " was written, the step has " << first_row;
}

}  // namespace manta::backend::testing
