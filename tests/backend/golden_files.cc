#include "golden_files.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace manta::backend::testing {

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
