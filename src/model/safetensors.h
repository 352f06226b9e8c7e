// A .safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes. The header is somebody else's input
// and is checked whole before a tensor is looked at: lengths against the file, bytes against shape and dtype, and the
// tensors must cover the data without gap or overlap, as the format demands.
// Source: https://github.com/huggingface/safetensors (format section of its README).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "base/tensor.h"

namespace manta::model {

inline constexpr size_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own limit

struct TensorEntry {
  std::string name;
  std::string dtype_name;      // as stored: "F8_E4M3"
  std::optional<DType> dtype;  // empty: a dtype of the format that manta has no use for
  std::vector<int64_t> shape;
  size_t begin = 0;  // bytes from the start of the file
  size_t num_bytes = 0;

  std::string describe() const;  // "BF16[12, 256]"
};

// `start` is the file's beginning, at least 8 bytes + header when the file has them. Ascending by offset.
// kDataLoss, naming `file` and the tensor: truncated, overlapping, gaps, sizes that do not fit, duplicate names.
Result<std::vector<TensorEntry>> parse_safetensors_header(std::string_view start, size_t file_bytes,
                                                          const std::string& file);

// A file mapped into memory, read-only. Pages come in as they are read and stay the page cache's.
// A file that somebody truncates while it is mapped ends the process (SIGBUS): checkpoints are not to be edited in
// place.
class SafetensorsFile {
 public:
  static Result<std::shared_ptr<const SafetensorsFile>> open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;  // null: not in this file
  // The stored bytes; may be less aligned than its dtype asks for.
  std::string_view bytes(const TensorEntry& entry) const;
  // Tells the kernel that these bytes will be read soon.
  void will_need(const TensorEntry& entry) const;

 private:
  SafetensorsFile(std::string path, const char* data, size_t num_bytes);

  std::string path_;
  const char* data_;
  size_t num_bytes_;
  std::vector<TensorEntry> tensors_;
  std::unordered_map<std::string_view, const TensorEntry*> by_name_;
};

}  // namespace manta::model
