// The values of tests/golden/, read for tests: a plain safetensors reader, independent of the loader under test.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace manta::backend::testing {

struct GoldenTensor {
  std::vector<int64_t> shape;
  std::vector<float> f32;  // one of the two holds the values
  std::vector<int32_t> i32;
};

// By name. Throws std::runtime_error when the file is missing or not as expected.
using GoldenTensors = std::map<std::string, GoldenTensor>;
GoldenTensors read_golden(const std::string& path);

// KL(softmax(reference) || softmax(other)) over n logits, in double.
double kl_divergence(const float* reference, const float* other, int64_t n);

}  // namespace manta::backend::testing
