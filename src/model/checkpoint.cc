#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>

#include "model/finite.h"
#include "model/safetensors.h"
#include "model/weight_index.h"
#include "model/weight_source.h"

namespace manta::model {

namespace {

constexpr int kMaxNamesInMessage = 3;
constexpr int kComparedRows = 64;

std::string describe(const char* dtypes, const std::vector<int64_t>& shape) {
  return fmt::format("{}[{}]", dtypes, fmt::join(shape, ", "));
}

struct Stored {
  const SafetensorsFile* file = nullptr;
  const TensorEntry* entry = nullptr;
};

class Checkpoint : public WeightSource {
 public:
  Checkpoint(std::string folder, WeightIndex index)
      : folder_(std::move(folder)), index_(std::move(index)), files_(index_.files.size()) {}

  Status check_names(const ModelConfig& config) const;
  Status check_mtp_shares(const ModelConfig& config) const;

  Status check(const WeightSpec& spec) const override;
  size_t num_bytes(const WeightSpec& spec) const override;
  uint64_t read_order(const WeightSpec& spec) const override;
  Result<backend::WeightView> read(const WeightSpec& spec, ReadBuffer& buffer) const override;

 private:
  struct OpenFile {
    std::mutex mutex;
    std::shared_ptr<const SafetensorsFile> file;
  };

  Result<const SafetensorsFile*> open(int file) const;
  Result<Stored> find(const std::string& name) const;
  // For names that check() has found.
  Stored found(const std::string& name) const;
  Status check_stored(const Stored& stored, const std::vector<int64_t>& shape, const char* dtypes,
                      bool dtype_fits) const;
  Result<Tensor> view(const std::string& name, const std::vector<int64_t>& shape, std::vector<uint64_t>& buffer) const;

  std::string folder_;
  WeightIndex index_;
  mutable std::vector<OpenFile> files_;
};

Result<const SafetensorsFile*> Checkpoint::open(int number) const {
  OpenFile& slot = files_[number];
  const std::lock_guard lock(slot.mutex);
  if (!slot.file) {
    MANTA_ASSIGN(slot.file, SafetensorsFile::open((std::filesystem::path(folder_) / index_.files[number]).string()));
  }
  return slot.file.get();
}

Result<Stored> Checkpoint::find(const std::string& name) const {
  const int number = index_.find(name);
  if (number < 0) {
    return error(ErrorCode::kDataLoss, fmt::format("{}: tensor {} is missing from the checkpoint", folder_, name));
  }
  MANTA_ASSIGN(const SafetensorsFile* file, open(number));
  const TensorEntry* entry = file->find(name);
  if (!entry) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("{}: tensor {} is missing; the index says it is in this file", file->path(), name));
  }
  return Stored{file, entry};
}

Stored Checkpoint::found(const std::string& name) const {
  const auto stored = find(name);
  assert(stored.ok());
  return *stored;
}

Status Checkpoint::check_names(const ModelConfig& config) const {
  const KnownNames known(config);
  std::vector<std::string> extra;
  size_t num_extra = 0;
  for (const auto& tensor : index_.tensors) {
    if (known.contains(tensor.name)) continue;
    if (num_extra++ < kMaxNamesInMessage)
      extra.push_back(fmt::format("{} ({})", tensor.name, index_.files[tensor.file]));
  }
  if (num_extra == 0) return {};
  return error(ErrorCode::kDataLoss,
               fmt::format("{}: {} tensors are not part of the model that config.json describes: {}{}", folder_,
                           num_extra, fmt::join(extra, ", "), num_extra > kMaxNamesInMessage ? ", ..." : ""));
}

// manta keeps one embedding and one head. DeepSeek's files repeat them in the MTP module; a module with its own would
// draft nonsense, so rows all over both are compared.
Status Checkpoint::check_mtp_shares(const ModelConfig& config) const {
  for (const auto& [name, original] : shared_with_mtp(config)) {
    if (index_.find(name) < 0) continue;
    MANTA_ASSIGN(const Stored copy, find(name));
    MANTA_ASSIGN(const Stored main, find(original));
    bool same = copy.entry->dtype_name == main.entry->dtype_name && copy.entry->shape == main.entry->shape;
    const size_t row_bytes = copy.entry->num_bytes / static_cast<size_t>(config.shape.vocab_size);
    for (int i = 0; same && i < kComparedRows; ++i) {
      const auto row = static_cast<size_t>(static_cast<int64_t>(i) * config.shape.vocab_size / kComparedRows);
      same = copy.file->bytes(*copy.entry).substr(row * row_bytes, row_bytes) ==
             main.file->bytes(*main.entry).substr(row * row_bytes, row_bytes);
    }
    if (!same) {
      return error(ErrorCode::kUnimplemented, fmt::format("{}: tensor {} differs from {}; an MTP module with an "
                                                          "embedding or head of its own is not done here",
                                                          copy.file->path(), name, original));
    }
  }
  return {};
}

Status Checkpoint::check_stored(const Stored& stored, const std::vector<int64_t>& shape, const char* dtypes,
                                bool dtype_fits) const {
  if (dtype_fits && stored.entry->shape == shape) return {};
  return error(ErrorCode::kDataLoss,
               fmt::format("{}: tensor {}: expected {}, found {}", stored.file->path(), stored.entry->name,
                           describe(dtypes, shape), stored.entry->describe()));
}

Status Checkpoint::check(const WeightSpec& spec) const {
  MANTA_ASSIGN(const Stored stored, find(spec.name));
  const auto dtype = stored.entry->dtype;
  const bool is_fp8 = dtype == DType::kF8E4M3;
  const bool fits = dtype == DType::kF32 || dtype == DType::kBF16 || (is_fp8 && spec.may_be_fp8());
  MANTA_TRY(check_stored(stored, spec.shape, spec.may_be_fp8() ? "F8_E4M3, BF16 or F32 " : "BF16 or F32 ", fits));
  const std::string scale_name = spec.name + std::string(kScaleSuffix);
  if (!is_fp8 && index_.find(scale_name) < 0) return {};
  if (!is_fp8) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("{}: tensor {} is {} and has a scale {}; only F8_E4M3 has one", stored.file->path(),
                             spec.name, stored.entry->dtype_name, scale_name));
  }
  MANTA_ASSIGN(const Stored scale, find(scale_name));
  return check_stored(scale, spec.scale_shape(), "F32", scale.entry->dtype == DType::kF32);
}

size_t Checkpoint::num_bytes(const WeightSpec& spec) const {
  const Stored stored = found(spec.name);
  if (stored.entry->dtype != DType::kF8E4M3) return stored.entry->num_bytes;
  return stored.entry->num_bytes + found(spec.name + std::string(kScaleSuffix)).entry->num_bytes;
}

uint64_t Checkpoint::read_order(const WeightSpec& spec) const {
  // Files are far below 2^48 bytes.
  return (static_cast<uint64_t>(index_.find(spec.name)) << 48) + found(spec.name).entry->begin;
}

Result<Tensor> Checkpoint::view(const std::string& name, const std::vector<int64_t>& shape,
                                std::vector<uint64_t>& buffer) const {
  const Stored stored = found(name);
  const std::string_view bytes = stored.file->bytes(*stored.entry);
  const DType dtype = *stored.entry->dtype;
  stored.file->will_need(*stored.entry);
  if (const int64_t at = first_not_finite(bytes, dtype); at >= 0) {
    return error(ErrorCode::kDataLoss, fmt::format("{}: tensor {}: value {} of {} is NaN or infinite",
                                                   stored.file->path(), name, at, stored.entry->describe()));
  }
  const void* data = bytes.data();
  if (reinterpret_cast<uintptr_t>(data) % dtype_bytes(dtype) != 0) {
    buffer.resize((bytes.size() + 7) / 8);
    std::memcpy(buffer.data(), bytes.data(), bytes.size());
    data = buffer.data();
  }
  void* readable = const_cast<void*>(data);  // Tensor has no read-only form; pack() does not write
  return shape.size() == 1 ? make_tensor(readable, dtype, {shape[0]})
                           : make_tensor(readable, dtype, {shape[0], shape[1]});
}

Result<backend::WeightView> Checkpoint::read(const WeightSpec& spec, ReadBuffer& buffer) const {
  backend::WeightView weight;
  MANTA_ASSIGN(weight.data, view(spec.name, spec.shape, buffer.data));
  if (weight.data.dtype == DType::kF8E4M3) {
    MANTA_ASSIGN(weight.scale_inv, view(spec.name + std::string(kScaleSuffix), spec.scale_shape(), buffer.scales));
  }
  if (spec.role != backend::WeightRole::kBias || weight.data.dtype == DType::kF32) return weight;
  // Backends take the bias as float32; some relatives store it as bf16.
  const int64_t n = spec.shape[0];
  std::vector<uint64_t> widened((static_cast<size_t>(n) + 1) / 2);
  auto* words = reinterpret_cast<uint32_t*>(widened.data());
  for (int64_t i = 0; i < n; ++i) words[i] = static_cast<uint32_t>(weight.data.as<uint16_t>()[i]) << 16;
  buffer.data = std::move(widened);
  weight.data = make_tensor(buffer.data.data(), DType::kF32, {n});
  return weight;
}

}  // namespace

Result<std::unique_ptr<WeightSource>> open_checkpoint(const std::string& folder, const ModelConfig& config) {
  MANTA_ASSIGN(WeightIndex index, load_weight_index(folder));
  auto checkpoint = std::make_unique<Checkpoint>(folder, std::move(index));
  MANTA_TRY(checkpoint->check_names(config));
  MANTA_TRY(checkpoint->check_mtp_shares(config));
  return std::unique_ptr<WeightSource>(std::move(checkpoint));
}

}  // namespace manta::model
