#include <cmath>
#include <cstring>

#include "model/weight_source.h"

namespace manta::model {

using backend::mix64;
using backend::WeightRole;

namespace {

uint64_t hash_name(std::string_view name, uint64_t seed) {
  uint64_t h = mix64(seed);
  for (const char c : name) h = mix64(h ^ static_cast<unsigned char>(c));
  return h;
}

float e4m3_value(int code) {
  const int exponent = (code >> 3) & 15;
  const float mantissa = static_cast<float>(code & 7) / 8.0f;
  const float magnitude = exponent == 0 ? std::ldexp(mantissa, -6) : std::ldexp(1.0f + mantissa, exponent - 7);
  return (code & 128) != 0 ? -magnitude : magnitude;
}

// Root mean square of random FP8 codes as random_fp8 draws them (the NaN codes become the largest value).
float e4m3_rms() {
  double sum = 0;
  for (int code = 0; code < 128; ++code) sum += std::pow(e4m3_value(code == 127 ? 126 : code), 2);
  return static_cast<float>(std::sqrt(sum / 128));
}

void random_fp8(uint64_t key, std::vector<uint64_t>& words) {
  for (size_t i = 0; i < words.size(); ++i) words[i] = backend::random_fp8_word(key, i);
}

void random_bf16(uint64_t key, float center, float deviation, std::vector<uint64_t>& words) {
  const float step = backend::uniform_step(deviation);
  for (size_t i = 0; i < words.size(); ++i) words[i] = backend::random_bf16_word(key, i, center, step);
}

size_t num_elements(const std::vector<int64_t>& shape) {
  size_t n = 1;
  for (const int64_t dim : shape) n *= static_cast<size_t>(dim);
  return n;
}

Tensor as_tensor(void* data, DType dtype, const std::vector<int64_t>& shape) {
  return shape.size() == 1 ? make_tensor(data, dtype, {shape[0]}) : make_tensor(data, dtype, {shape[0], shape[1]});
}

class DummyWeights : public WeightSource {
 public:
  DummyWeights(const ModelConfig& config, uint64_t seed, bool backend_makes_matrices)
      : fp8_(config.quantization.fp8), seed_(seed), backend_makes_matrices_(backend_makes_matrices) {}

  Status check(const WeightSpec&) const override { return {}; }
  uint64_t read_order(const WeightSpec&) const override { return 0; }
  size_t num_bytes(const WeightSpec& spec) const override {
    if (!is_fp8(spec)) return num_elements(spec.shape) * dtype_bytes(dtype(spec));
    return num_elements(spec.shape) + num_elements(spec.scale_shape()) * sizeof(float);
  }

  Result<backend::WeightView> read(const WeightSpec& spec, ReadBuffer& buffer) const override {
    const uint64_t key = hash_name(spec.name, seed_);
    if (backend_makes_matrices_ && spec.shape.size() == 2) return described(spec, key, buffer);
    const size_t bytes = num_elements(spec.shape) * dtype_bytes(dtype(spec));
    buffer.data.resize((bytes + 7) / 8);
    backend::WeightView weight;
    weight.data = as_tensor(buffer.data.data(), dtype(spec), spec.shape);
    if (spec.role == WeightRole::kNorm) {
      random_bf16(key, 1.0f, 0.1f, buffer.data);
    } else if (spec.role == WeightRole::kBias) {
      fill_bias(key, spec.shape[0], buffer);
    } else if (is_fp8(spec)) {
      random_fp8(key, buffer.data);
      weight.scale_inv = make_scales(spec, buffer);
    } else {
      random_bf16(key, 0.0f, deviation(spec), buffer.data);
    }
    return weight;
  }

 private:
  bool is_fp8(const WeightSpec& spec) const { return fp8_ && spec.may_be_fp8(); }
  DType dtype(const WeightSpec& spec) const {
    if (spec.role == WeightRole::kBias) return DType::kF32;
    return is_fp8(spec) ? DType::kF8E4M3 : DType::kBF16;
  }
  static void fill_bias(uint64_t key, int64_t n, ReadBuffer& buffer) {
    auto* bias = reinterpret_cast<float*>(buffer.data.data());
    for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(mix64(key + i) >> 40) * 0x1p-24f * 0.01f;
  }
  // Rows that keep the size of what passes through them, whatever the width.
  static float deviation(const WeightSpec& spec) {
    if (spec.role == WeightRole::kEmbedding) return 1.0f;
    return spec.shape.size() == 2 ? 1.0f / std::sqrt(static_cast<float>(spec.shape[1])) : 0.0f;
  }
  Result<backend::WeightView> described(const WeightSpec& spec, uint64_t key, ReadBuffer& buffer) const {
    backend::WeightView weight;
    weight.data = as_tensor(nullptr, dtype(spec), spec.shape);
    weight.random = backend::RandomMatrix{key, deviation(spec)};
    if (is_fp8(spec)) weight.scale_inv = make_scales(spec, buffer);
    return weight;
  }
  static Tensor make_scales(const WeightSpec& spec, ReadBuffer& buffer) {
    static const float rms = e4m3_rms();
    const size_t n = num_elements(spec.scale_shape());
    buffer.scales.resize((n + 1) / 2);
    auto* scales = reinterpret_cast<float*>(buffer.scales.data());
    for (size_t i = 0; i < n; ++i) scales[i] = deviation(spec) / rms;
    return as_tensor(scales, DType::kF32, spec.scale_shape());
  }

  bool fp8_;
  uint64_t seed_;
  bool backend_makes_matrices_;
};

}  // namespace

std::unique_ptr<WeightSource> make_dummy_weights(const ModelConfig& config, uint64_t seed,
                                                 bool backend_makes_matrices) {
  return std::make_unique<DummyWeights>(config, seed, backend_makes_matrices);
}

}  // namespace manta::model
