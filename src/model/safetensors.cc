#include "model/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <simdjson.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace manta::model {

namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxDepth = 8;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 1024;

struct StoredType {
  const char* name;
  size_t num_bytes;
  std::optional<DType> dtype;
};

constexpr std::array<StoredType, 16> kStoredTypes = {{{"F32", 4, DType::kF32},
                                                      {"BF16", 2, DType::kBF16},
                                                      {"F16", 2, DType::kF16},
                                                      {"F8_E4M3", 1, DType::kF8E4M3},
                                                      {"I32", 4, DType::kI32},
                                                      {"I64", 8, DType::kI64},
                                                      {"U8", 1, DType::kU8},
                                                      {"BOOL", 1, DType::kBool},
                                                      {"F64", 8, {}},
                                                      {"F8_E5M2", 1, {}},
                                                      {"F8_E8M0", 1, {}},
                                                      {"I8", 1, {}},
                                                      {"I16", 2, {}},
                                                      {"U16", 2, {}},
                                                      {"U32", 4, {}},
                                                      {"U64", 8, {}}}};

// Names come from the file: keep a message on one line and of one screen at most.
std::string printable(std::string_view name) {
  std::string out = "'";
  for (const char c : name.substr(0, 160)) out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  return out + (name.size() > 160 ? "...'" : "'");
}

Error bad(const std::string& file, std::string message) {
  return error(ErrorCode::kDataLoss, file + ": " + std::move(message));
}

Error bad_tensor(const std::string& file, std::string_view name, std::string_view message) {
  return bad(file, fmt::format("tensor {}: {}", printable(name), message));
}

Status read_dtype(simdjson::dom::object fields, const std::string& file, TensorEntry& entry, size_t& element_bytes) {
  std::string_view name;
  if (fields["dtype"].get(name) != simdjson::SUCCESS) return bad_tensor(file, entry.name, "dtype is not a text");
  const auto type =
      std::find_if(kStoredTypes.begin(), kStoredTypes.end(), [&](const auto& t) { return name == t.name; });
  if (type == kStoredTypes.end()) {
    return bad_tensor(file, entry.name, fmt::format("dtype {} is not one manta can read", printable(name)));
  }
  entry.dtype_name = type->name;
  entry.dtype = type->dtype;
  element_bytes = type->num_bytes;
  return {};
}

// -> bytes that shape and dtype ask for.
Status read_shape(simdjson::dom::object fields, const std::string& file, TensorEntry& entry, size_t& num_bytes) {
  simdjson::dom::array dims;
  if (fields["shape"].get(dims) != simdjson::SUCCESS) return bad_tensor(file, entry.name, "shape is not a list");
  if (dims.size() > kMaxRank) {
    return bad_tensor(file, entry.name, fmt::format("{} dimensions, at most {}", dims.size(), kMaxRank));
  }
  for (const auto item : dims) {
    uint64_t dim = 0;
    if (item.get(dim) != simdjson::SUCCESS || dim > static_cast<uint64_t>(INT64_MAX)) {
      return bad_tensor(file, entry.name, "shape holds something that is no size");
    }
    if (__builtin_mul_overflow(num_bytes, static_cast<size_t>(dim), &num_bytes)) {
      return bad_tensor(file, entry.name, "shape has more bytes than an address can count");
    }
    entry.shape.push_back(static_cast<int64_t>(dim));
  }
  return {};
}

Status read_offsets(simdjson::dom::object fields, const std::string& file, size_t data_begin, size_t file_bytes,
                    TensorEntry& entry, size_t num_bytes) {
  simdjson::dom::array offsets;
  uint64_t begin = 0, end = 0;
  if (fields["data_offsets"].get(offsets) != simdjson::SUCCESS || offsets.size() != 2 ||
      offsets.at(0).get(begin) != simdjson::SUCCESS || offsets.at(1).get(end) != simdjson::SUCCESS || begin > end) {
    return bad_tensor(file, entry.name, "data_offsets is not a pair [begin, end]");
  }
  const size_t data_bytes = file_bytes - data_begin;
  if (end > data_bytes) {
    return bad_tensor(
        file, entry.name,
        fmt::format("ends at byte {} of the data, but the file has {}: it is truncated", end, data_bytes));
  }
  if (end - begin != num_bytes) {
    return bad_tensor(file, entry.name,
                      fmt::format("{} takes {} bytes, data_offsets [{}, {}] hold {}", entry.describe(), num_bytes,
                                  begin, end, end - begin));
  }
  entry.begin = data_begin + begin;
  entry.num_bytes = num_bytes;
  return {};
}

Result<TensorEntry> read_entry(const std::string& file, std::string_view name, simdjson::dom::element value,
                               size_t data_begin, size_t file_bytes) {
  TensorEntry entry;
  if (name.empty() || name.size() > kMaxNameBytes) {
    return bad_tensor(file, name,
                      fmt::format("its name has {} bytes, 1 to {} are allowed", name.size(), kMaxNameBytes));
  }
  entry.name = name;
  simdjson::dom::object fields;
  if (value.get(fields) != simdjson::SUCCESS) return bad_tensor(file, name, "is not described by an object");
  if (fields.size() != 3) {
    return bad_tensor(file, name, "must have dtype, shape and data_offsets, each once, and nothing else");
  }
  size_t num_bytes = 0;
  MANTA_TRY(read_dtype(fields, file, entry, num_bytes));
  MANTA_TRY(read_shape(fields, file, entry, num_bytes));
  MANTA_TRY(read_offsets(fields, file, data_begin, file_bytes, entry, num_bytes));
  return entry;
}

// Sorted by offset, the tensors follow each other from the first byte of the data to the file's last.
Status check_cover(const std::vector<TensorEntry>& tensors, const std::string& file, size_t data_begin,
                   size_t file_bytes) {
  size_t at = data_begin;
  const TensorEntry* previous = nullptr;
  for (const TensorEntry& entry : tensors) {
    if (entry.begin < at) {
      return bad_tensor(file, entry.name,
                        fmt::format("overlaps tensor {} by {} bytes", printable(previous->name), at - entry.begin));
    }
    if (entry.begin > at) {
      return bad_tensor(file, entry.name, fmt::format("{} bytes before it belong to no tensor", entry.begin - at));
    }
    at = entry.begin + entry.num_bytes;
    previous = &entry;
  }
  if (at != file_bytes) return bad(file, fmt::format("the last {} bytes belong to no tensor", file_bytes - at));
  return {};
}

Status check_names(const std::vector<TensorEntry>& tensors, const std::string& file) {
  std::vector<std::string_view> names;
  for (const TensorEntry& entry : tensors) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  return twice == names.end() ? Status() : bad_tensor(file, *twice, "is there twice");
}

Result<size_t> header_length(std::string_view start, size_t file_bytes, const std::string& file) {
  if (file_bytes < kLengthBytes || start.size() < kLengthBytes) {
    return bad(file, fmt::format("{} bytes: too short for a safetensors file, it is truncated", file_bytes));
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= static_cast<uint64_t>(static_cast<unsigned char>(start[i])) << (8 * i);
  }
  if (length > kMaxSafetensorsHeaderBytes) {
    return bad(file, fmt::format("header of {} bytes: at most {}; this is not a safetensors file", length,
                                 kMaxSafetensorsHeaderBytes));
  }
  if (length > file_bytes - kLengthBytes || length > start.size() - kLengthBytes) {
    return bad(file, fmt::format("header of {} bytes, but the file has {}: it is truncated", length, file_bytes));
  }
  return static_cast<size_t>(length);
}

}  // namespace

std::string TensorEntry::describe() const {
  return fmt::format("{}[{}]", dtype_name, fmt::join(shape, ", "));
}

Result<std::vector<TensorEntry>> parse_safetensors_header(std::string_view start, size_t file_bytes,
                                                          const std::string& file) {
  MANTA_ASSIGN(const size_t length, header_length(start, file_bytes, file));
  const size_t data_begin = kLengthBytes + length;
  simdjson::dom::parser parser;
  simdjson::dom::object header;
  if (parser.allocate(length, kMaxDepth) != simdjson::SUCCESS) return bad(file, "no memory for its header");
  const auto failed = parser.parse(start.data() + kLengthBytes, length).get(header);
  if (failed != simdjson::SUCCESS) return bad(file, fmt::format("header: {}", simdjson::error_message(failed)));
  std::vector<TensorEntry> tensors;
  bool has_metadata = false;
  for (const auto field : header) {
    if (field.key == "__metadata__") {  // free text for the reader: the one name that is no tensor
      if (has_metadata || !field.value.is_object()) return bad(file, "__metadata__ must be one object");
      has_metadata = true;
      continue;
    }
    MANTA_ASSIGN(TensorEntry entry, read_entry(file, field.key, field.value, data_begin, file_bytes));
    tensors.push_back(std::move(entry));
  }
  // An empty tensor stands before the one that begins where it ends.
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.num_bytes < b.num_bytes;
  });
  MANTA_TRY(check_names(tensors, file));
  MANTA_TRY(check_cover(tensors, file, data_begin, file_bytes));
  return tensors;
}

SafetensorsFile::SafetensorsFile(std::string path, const char* data, size_t num_bytes)
    : path_(std::move(path)), data_(data), num_bytes_(num_bytes) {}

SafetensorsFile::~SafetensorsFile() {
  munmap(const_cast<char*>(data_), num_bytes_);
}

Result<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::open(const std::string& path) {
  const auto failed = [&](const char* what) {
    const int reason = errno;
    return error(reason == ENOENT ? ErrorCode::kNotFound : ErrorCode::kUnavailable,
                 fmt::format("{}: cannot be {}: {}", path, what, std::generic_category().message(reason)));
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return failed("opened");
  struct stat info {};
  const bool is_file = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const auto num_bytes = static_cast<size_t>(info.st_size);
  void* data = is_file && num_bytes > 0 ? mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
  const int reason = errno;
  close(fd);
  if (!is_file) return error(ErrorCode::kUnavailable, path + ": is not a file");
  if (num_bytes == 0) return bad(path, "0 bytes: it is truncated");
  errno = reason;
  if (data == MAP_FAILED) return failed("mapped");
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile(path, static_cast<const char*>(data), num_bytes));
  MANTA_ASSIGN(file->tensors_, parse_safetensors_header({file->data_, num_bytes}, num_bytes, path));
  for (const TensorEntry& entry : file->tensors_) file->by_name_.emplace(entry.name, &entry);
  return std::shared_ptr<const SafetensorsFile>(std::move(file));
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

std::string_view SafetensorsFile::bytes(const TensorEntry& entry) const {
  return {data_ + entry.begin, entry.num_bytes};
}

void SafetensorsFile::will_need(const TensorEntry& entry) const {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = entry.begin / page * page;
  madvise(const_cast<char*>(data_) + begin, entry.begin + entry.num_bytes - begin, MADV_WILLNEED);
}

}  // namespace manta::model
