// Any text as model.safetensors.index.json. Whatever is accepted finds each of its tensors, in a file of its folder.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/weight_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto index = manta::model::parse_weight_index({reinterpret_cast<const char*>(data), size}, "index.json");
  if (!index.ok()) return 0;
  for (const auto& file : index->files) {
    if (file.find('/') != std::string::npos || file.find("..") == 0) std::abort();
  }
  for (const auto& tensor : index->tensors) {
    const int file = index->find(tensor.name);
    if (file != tensor.file || file < 0 || file >= static_cast<int>(index->files.size())) std::abort();
  }
  return 0;
}
