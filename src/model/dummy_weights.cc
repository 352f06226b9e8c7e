#include <cmath>
#include <cstring>

#include "model/weight_source.h"

namespace manta::model {

using backend::WeightRole;

namespace {

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

uint64_t hash_name(std::string_view name, uint64_t seed) {
  uint64_t h = mix(seed);
  for (const char c : name) h = mix(h ^ static_cast<unsigned char>(c));
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
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7fULL, kOne = 0x0101010101010101ULL;
  for (size_t i = 0; i < words.size(); ++i) {
    const uint64_t x = mix(key + i);
    const uint64_t is_nan = (((x & kLow) + kOne) >> 7) & kOne;  // per byte: its low seven bits are all ones
    words[i] = x & ~is_nan;
  }
}

uint16_t to_bf16(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// Uniform around `center` with standard deviation `deviation`.
void random_bf16(uint64_t key, float center, float deviation, std::vector<uint64_t>& words) {
  const float step = 2.0f * std::sqrt(3.0f) * deviation / 65536.0f;
  for (size_t i = 0; i < words.size(); ++i) {
    uint64_t x = mix(key + i);
    uint64_t out = 0;
    for (int lane = 0; lane < 64; lane += 16, x >>= 16) {
      const float u = static_cast<float>(static_cast<int>(x & 0xffff) - 32768) + 0.5f;
      out |= static_cast<uint64_t>(to_bf16(center + u * step)) << lane;
    }
    words[i] = out;
  }
}

size_t num_elements(const std::vector<int64_t>& shape) {
  size_t n = 1;
  for (const int64_t dim : shape) n *= static_cast<size_t>(dim);
  return n;
}

Tensor as_tensor(std::vector<uint64_t>& words, DType dtype, const std::vector<int64_t>& shape) {
  return shape.size() == 1 ? make_tensor(words.data(), dtype, {shape[0]})
                           : make_tensor(words.data(), dtype, {shape[0], shape[1]});
}

class DummyWeights : public WeightSource {
 public:
  DummyWeights(const ModelConfig& config, uint64_t seed) : fp8_(config.quantization.fp8), seed_(seed) {}

  Status check(const WeightSpec&) const override { return {}; }
  uint64_t read_order(const WeightSpec&) const override { return 0; }
  size_t num_bytes(const WeightSpec& spec) const override {
    if (!is_fp8(spec)) return num_elements(spec.shape) * dtype_bytes(dtype(spec));
    return num_elements(spec.shape) + num_elements(spec.scale_shape()) * sizeof(float);
  }

  Result<backend::WeightView> read(const WeightSpec& spec, ReadBuffer& buffer) const override {
    const size_t bytes = num_elements(spec.shape) * dtype_bytes(dtype(spec));
    buffer.data.resize((bytes + 7) / 8);
    const uint64_t key = hash_name(spec.name, seed_);
    backend::WeightView weight;
    weight.data = as_tensor(buffer.data, dtype(spec), spec.shape);
    // Rows that keep the size of what passes through them, whatever the width.
    const float deviation = spec.shape.size() == 2 ? 1.0f / std::sqrt(static_cast<float>(spec.shape[1])) : 0.0f;
    switch (spec.role) {
      case WeightRole::kNorm: random_bf16(key, 1.0f, 0.1f, buffer.data); break;
      case WeightRole::kEmbedding: random_bf16(key, 0.0f, 1.0f, buffer.data); break;
      case WeightRole::kBias: fill_bias(key, spec.shape[0], buffer); break;
      default:
        if (is_fp8(spec)) {
          random_fp8(key, buffer.data);
          fill_scales(spec, deviation, buffer);
          weight.scale_inv = as_tensor(buffer.scales, DType::kF32, spec.scale_shape());
        } else {
          random_bf16(key, 0.0f, deviation, buffer.data);
        }
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
    for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(mix(key + i) >> 40) * 0x1p-24f * 0.01f;
  }
  static void fill_scales(const WeightSpec& spec, float deviation, ReadBuffer& buffer) {
    static const float rms = e4m3_rms();
    const size_t n = num_elements(spec.scale_shape());
    buffer.scales.resize((n + 1) / 2);
    auto* scales = reinterpret_cast<float*>(buffer.scales.data());
    for (size_t i = 0; i < n; ++i) scales[i] = deviation / rms;
  }

  bool fp8_;
  uint64_t seed_;
};

}  // namespace

std::unique_ptr<WeightSource> make_dummy_weights(const ModelConfig& config, uint64_t seed) {
  return std::make_unique<DummyWeights>(config, seed);
}

}  // namespace manta::model
