// Any bytes as a .safetensors file: an error is fine, a crash or tensors outside the file are not.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "model/safetensors.h"

namespace {

// `file_bytes` may be more than was given: the rest of the file is data, which the header alone is checked against.
void parse(std::string_view start, size_t file_bytes) {
  const auto tensors = manta::model::parse_safetensors_header(start, file_bytes, "fuzz.safetensors");
  if (!tensors.ok()) return;
  size_t end = 0;
  for (const auto& tensor : *tensors) {
    if (tensor.begin < end || tensor.num_bytes > file_bytes - tensor.begin) std::abort();
    end = tensor.begin + tensor.num_bytes;
    if (tensor.describe().empty()) std::abort();
  }
  if (!tensors->empty() && end != file_bytes) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  parse(bytes, size);
  // The same bytes as a bare header, so that the fuzzer need not keep the length right.
  std::string framed;
  for (int i = 0; i < 8; ++i) framed += static_cast<char>(size >> (8 * i) & 255);
  framed += bytes;
  for (const size_t data_bytes : {0, 1, 6, 64}) parse(framed, framed.size() + data_bytes);
  return 0;
}
