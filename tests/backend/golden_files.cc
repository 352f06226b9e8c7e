#include "golden_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace manta::backend::testing {
namespace {

std::vector<double> log_softmax(const float* logits, int64_t n) {
  const double max = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - max);
  std::vector<double> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = logits[i] - max - std::log(sum);
  return out;
}

}  // namespace

double kl_divergence(const float* reference, const float* other, int64_t n) {
  const auto p = log_softmax(reference, n), q = log_softmax(other, n);
  double kl = 0;
  for (int64_t i = 0; i < n; ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  return kl;
}

GoldenTensors read_golden(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) throw std::runtime_error(path + ": missing or empty");
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const auto header = nlohmann::json::parse(bytes.substr(sizeof(header_bytes), header_bytes));
  const char* data = bytes.data() + sizeof(header_bytes) + header_bytes;
  GoldenTensors out;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    GoldenTensor& t = out[name];
    t.shape = entry["shape"].get<std::vector<int64_t>>();
    const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    const auto copy = [&](auto& values) {
      values.resize((end - begin) / 4);
      std::memcpy(values.data(), data + begin, end - begin);
    };
    if (entry["dtype"] == "F32") {
      copy(t.f32);
    } else if (entry["dtype"] == "I32") {
      copy(t.i32);
    } else {
      throw std::runtime_error(path + ": " + name + " is " + entry["dtype"].get<std::string>());
    }
  }
  return out;
}

}  // namespace manta::backend::testing
