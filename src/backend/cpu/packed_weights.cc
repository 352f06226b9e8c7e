#include "backend/cpu/packed_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/host/float_formats.h"

namespace manta::backend::cpu {
namespace {

constexpr int kBlockK = kScaleBlock;  // k packed at a time

bool has_scale(const WeightView& weight) {
  return weight.scale_inv.data != nullptr;
}

float scale_at(const WeightView& weight, int64_t row, int64_t column) {
  if (!has_scale(weight)) return 1.0f;
  const Tensor& s = weight.scale_inv;
  return s.as<float>()[row / kScaleBlock * s.stride[0] + column / kScaleBlock * s.stride[1]];
}

// Stored values [row][first, first + count) in float32, scales applied.
void read_row(const WeightView& weight, int64_t row, int64_t first, int64_t count, float* out) {
  const Tensor& t = weight.data;
  const int64_t offset = row * t.stride[0] + first;
  switch (t.dtype) {
    case DType::kF32: std::copy_n(t.as<float>() + offset, count, out); return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = host::from_bf16(t.as<uint16_t>()[offset + i]);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = host::from_f16(t.as<uint16_t>()[offset + i]);
      return;
    default:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = host::from_e4m3(t.as<uint8_t>()[offset + i]) * scale_at(weight, row, first + i);
      }
  }
}

Status check_weight(const WeightView& weight, int rank) {
  const Tensor& t = weight.data;
  const auto refuse = [&](const std::string& why) {
    return error(ErrorCode::kInvalidArgument, fmt::format("the cpu backend cannot pack a {}: {}", t.describe(), why));
  };
  const bool fp8 = t.dtype == DType::kF8E4M3;
  if (!fp8 && t.dtype != DType::kF32 && t.dtype != DType::kBF16 && t.dtype != DType::kF16) {
    return refuse("only F32, BF16, F16 and F8_E4M3 hold weights");
  }
  if (t.rank != rank) return refuse(fmt::format("its role wants rank {}", rank));
  for (int i = 0; i < rank; ++i) {
    if (t.shape[i] < 1 || t.shape[i] > std::numeric_limits<int>::max()) return refuse("an axis is empty or too long");
  }
  if (t.stride[rank - 1] != 1) return refuse("its last axis must be dense");
  if (!has_scale(weight)) return {};
  const Tensor& s = weight.scale_inv;
  const auto blocks = [](int64_t size) { return (size + kScaleBlock - 1) / kScaleBlock; };
  if (!fp8 || rank != 2 || s.dtype != DType::kF32 || s.rank != 2 || s.shape[0] != blocks(t.shape[0]) ||
      s.shape[1] != blocks(t.shape[1])) {
    return refuse(fmt::format("its scales {} are not one F32 per 128 x 128 of F8_E4M3", s.describe()));
  }
  return {};
}

// One panel's 64 rows and up to 128 k of the source as [64][128], zero outside. Read: (stored row, first column,
// count, out) -> values.
template <typename T, typename Read>
void read_block(const PackedMatrix::Source& source, int n, int k, int first_n, int first_k, T (&block)[64][kBlockK],
                const Read& read) {
  std::memset(block, 0, sizeof(block));
  const int rows = std::min(kPanelColumns, n - first_n);
  const int columns = std::min(kBlockK, k - first_k);
  if (!source.transposed) {
    for (int i = 0; i < rows; ++i) read(source.first_row + first_n + i, first_k, columns, block[i]);
    return;
  }
  for (int j = 0; j < columns; ++j) {
    T line[kPanelColumns];
    read(source.first_row + first_k + j, first_n, rows, line);
    for (int i = 0; i < rows; ++i) block[i][j] = line[i];
  }
}

// The stored scale that covers a panel and a block of k, if it is one.
bool single_scale(const PackedMatrix::Source& source, int n, int k, int first_n, int first_k, float& scale) {
  const int last_n = std::min(first_n + kPanelColumns, n) - 1;
  const int last_k = std::min(first_k + kBlockK, k) - 1;
  const int64_t row0 = source.first_row + (source.transposed ? first_k : first_n);
  const int64_t row1 = source.first_row + (source.transposed ? last_k : last_n);
  const int64_t column0 = source.transposed ? first_n : first_k;
  const int64_t column1 = source.transposed ? last_n : last_k;
  if (has_scale(*source.weight) &&
      (row0 / kScaleBlock != row1 / kScaleBlock || column0 / kScaleBlock != column1 / kScaleBlock)) {
    return false;
  }
  scale = scale_at(*source.weight, row0, column0);
  return true;
}

bool keeps_fp8(const PackedMatrix::Source& source, int n, int k) {
  if (source.weight->data.dtype != DType::kF8E4M3) return false;
  float scale;
  for (int i = 0; i < n; i += kPanelColumns) {
    for (int j = 0; j < k; j += kBlockK) {
      if (!single_scale(source, n, k, i, j, scale)) return false;
    }
  }
  return true;
}

int source_n(const PackedMatrix::Source& s) {
  return static_cast<int>(s.transposed ? s.weight->data.shape[1] : s.num_rows);
}
int source_k(const PackedMatrix::Source& s) {
  return static_cast<int>(s.transposed ? s.num_rows : s.weight->data.shape[1]);
}

void pack_fp8_block(const PackedMatrix::Source& source, int n, int k, int first_n, int first_k, uint8_t* out) {
  uint8_t block[kPanelColumns][kBlockK];
  const Tensor& t = source.weight->data;
  read_block(source, n, k, first_n, first_k, block, [&](int64_t row, int64_t first, int count, uint8_t* to) {
    std::memcpy(to, t.as<uint8_t>() + row * t.stride[0] + first, count);
  });
  const int num_pairs = (std::min(kBlockK, k - first_k) + 1) / 2;
  for (int column = 0; column < kPanelColumns; ++column) {
    uint8_t* to = out + fp8_pair_offset(column);
    for (int pair = 0; pair < num_pairs; ++pair)
      std::memcpy(to + pair * 2 * kPanelColumns, &block[column][2 * pair], 2);
  }
}

void pack_bf16_block(const PackedMatrix::Source& source, int n, int k, int first_n, int first_k, uint16_t* out) {
  uint16_t block[kPanelColumns][kBlockK];
  const Tensor& t = source.weight->data;
  read_block(source, n, k, first_n, first_k, block, [&](int64_t row, int64_t first, int count, uint16_t* to) {
    if (t.dtype == DType::kBF16) {
      std::memcpy(to, t.as<uint16_t>() + row * t.stride[0] + first, count * sizeof(uint16_t));
      return;
    }
    float line[kBlockK];
    read_row(*source.weight, row, first, count, line);
    for (int i = 0; i < count; ++i) to[i] = host::to_bf16(line[i]);
  });
  const int num_pairs = (std::min(kBlockK, k - first_k) + 1) / 2;
  for (int column = 0; column < kPanelColumns; ++column) {
    uint16_t* to = out + 2 * column;
    for (int pair = 0; pair < num_pairs; ++pair)
      std::memcpy(to + pair * 2 * kPanelColumns, &block[column][2 * pair], 4);
  }
}

void pack_f32_block(const PackedMatrix::Source& source, int n, int k, int first_n, int first_k, float* out) {
  float block[kPanelColumns][kBlockK];
  read_block(source, n, k, first_n, first_k, block, [&](int64_t row, int64_t first, int count, float* to) {
    read_row(*source.weight, row, first, count, to);
  });
  const int count = std::min(kBlockK, k - first_k);
  for (int j = 0; j < count; ++j) {
    for (int i = 0; i < kPanelColumns; ++i) out[j * kPanelColumns + i] = block[i][j];
  }
}

template <typename T>
Result<PackedWeightPtr> as_weight(Result<PackedMatrix> matrix) {
  if (!matrix.ok()) return matrix.error();
  return PackedWeightPtr(std::make_unique<T>(std::move(matrix).value()));
}

Result<PackedWeightPtr> pack_vector(const WeightView& weight) {
  MANTA_TRY(check_weight(weight, 1));
  if (weight.data.dtype == DType::kF8E4M3) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: norms and biases are not FP8", weight.data.describe()));
  }
  auto packed = std::make_unique<VectorWeight>();
  packed->values.resize(weight.data.shape[0]);
  WeightView row = weight;
  row.data.stride[0] = 0;  // row 0 of a matrix of one row
  read_row(row, 0, 0, weight.data.shape[0], packed->values.data());
  return PackedWeightPtr(std::move(packed));
}

Result<PackedWeightPtr> pack_embedding(const WeightView& weight) {
  MANTA_TRY(check_weight(weight, 2));
  const int64_t rows = weight.data.shape[0], columns = weight.data.shape[1];
  auto packed = std::make_unique<EmbeddingWeight>();
  packed->hidden_size = columns;
  if (weight.data.dtype == DType::kBF16) {
    packed->bf16.resize(rows * columns);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(&packed->bf16[i * columns], weight.data.as<uint16_t>() + i * weight.data.stride[0], columns * 2);
    }
    return PackedWeightPtr(std::move(packed));
  }
  packed->f32.resize(rows * columns);
  for (int64_t i = 0; i < rows; ++i) read_row(weight, i, 0, columns, &packed->f32[i * columns]);
  return PackedWeightPtr(std::move(packed));
}

Result<PackedWeightPtr> pack_kv_up(const WeightView& weight, const KvUpShape& shape) {
  MANTA_TRY(check_weight(weight, 2));
  const int64_t per_head = shape.qk_nope_head_dim + shape.v_head_dim;
  if (weight.data.shape[0] != shape.num_heads * per_head) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("kv_b_proj {}: must have {} rows ({} heads x ({} + {}))", weight.data.describe(),
                             shape.num_heads * per_head, shape.num_heads, shape.qk_nope_head_dim, shape.v_head_dim));
  }
  auto packed = std::make_unique<KvUpWeight>();
  for (int head = 0; head < shape.num_heads; ++head) {
    const int64_t first = head * per_head;
    MANTA_ASSIGN(auto key, PackedMatrix::pack({&weight, first, shape.qk_nope_head_dim, true}));
    MANTA_ASSIGN(auto value, PackedMatrix::pack({&weight, first + shape.qk_nope_head_dim, shape.v_head_dim, false}));
    packed->key_up.push_back(std::move(key));
    packed->value_up.push_back(std::move(value));
    if (!shape.unabsorbed) continue;
    MANTA_ASSIGN(auto rows, PackedMatrix::pack({&weight, first, shape.qk_nope_head_dim, false}));
    packed->key_rows.push_back(std::move(rows));
  }
  return PackedWeightPtr(std::move(packed));
}

}  // namespace

size_t PackedMatrix::panel_bytes() const {
  switch (format_) {
    case MatrixFormat::kBf16: return static_cast<size_t>(num_pairs()) * 4 * kPanelColumns;
    case MatrixFormat::kFp8: return static_cast<size_t>(num_pairs()) * 2 * kPanelColumns;
    case MatrixFormat::kF32: return static_cast<size_t>(k_) * 4 * kPanelColumns;
  }
  return 0;
}

Result<PackedMatrix> PackedMatrix::allocate(MatrixFormat format, int64_t n, int64_t k) {
  PackedMatrix m;
  m.format_ = format;
  m.n_ = static_cast<int>(n);
  m.k_ = static_cast<int>(k);
  const size_t data = m.panel_bytes() * m.num_panels();
  const size_t scales = format == MatrixFormat::kFp8 ? sizeof(float) * m.num_panels() * m.num_scale_blocks() : 0;
  m.bytes_ = (data + scales + 63) / 64 * 64;
  m.data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, m.bytes_)));
  if (m.data_ == nullptr) {
    return error(ErrorCode::kResourceExhausted, fmt::format("no memory for a packed weight of {} bytes", m.bytes_));
  }
  m.scales_ = reinterpret_cast<float*>(m.data_.get() + data);
  // The tail that rounding adds is part of the packed bytes too.
  std::memset(m.data_.get() + data + scales, 0, m.bytes_ - data - scales);
  return m;
}

Result<PackedMatrix> PackedMatrix::pack(const Source& source) {
  MANTA_TRY(check_weight(*source.weight, 2));
  const int n = source_n(source), k = source_k(source);
  const bool fp8 = keeps_fp8(source, n, k);
  MANTA_ASSIGN(PackedMatrix m, allocate(fp8 ? MatrixFormat::kFp8 : MatrixFormat::kBf16, n, k));
  for (int panel = 0; panel < m.num_panels(); ++panel) {
    const int first_n = panel * kPanelColumns;
    std::byte* out = m.data_.get() + m.panel_bytes() * panel;
    for (int block = 0; block < m.num_scale_blocks(); ++block) {
      const int first_k = block * kBlockK;
      if (!fp8) {
        pack_bf16_block(source, n, k, first_n, first_k, reinterpret_cast<uint16_t*>(out) + first_k * kPanelColumns);
        continue;
      }
      pack_fp8_block(source, n, k, first_n, first_k, reinterpret_cast<uint8_t*>(out) + first_k * kPanelColumns);
      single_scale(source, n, k, first_n, first_k, m.scales_[panel * m.num_scale_blocks() + block]);
    }
  }
  return m;
}

Result<PackedMatrix> PackedMatrix::pack_f32(const Source& source) {
  MANTA_TRY(check_weight(*source.weight, 2));
  const int n = source_n(source), k = source_k(source);
  MANTA_ASSIGN(PackedMatrix m, allocate(MatrixFormat::kF32, n, k));
  for (int panel = 0; panel < m.num_panels(); ++panel) {
    float* out = reinterpret_cast<float*>(m.data_.get() + m.panel_bytes() * panel);
    for (int first_k = 0; first_k < k; first_k += kBlockK) {
      pack_f32_block(source, n, k, panel * kPanelColumns, first_k, out + first_k * kPanelColumns);
    }
  }
  return m;
}

size_t KvUpWeight::num_bytes() const {
  size_t bytes = 0;
  for (const auto& m : key_up) bytes += m.num_bytes();
  for (const auto& m : value_up) bytes += m.num_bytes();
  for (const auto& m : key_rows) bytes += m.num_bytes();
  return bytes;
}

Result<PackedWeightPtr> pack_weight(const WeightView& weight, WeightRole role, const KvUpShape& kv_up) {
  const PackedMatrix::Source all{&weight, 0, weight.data.shape[0], false};
  switch (role) {
    case WeightRole::kEmbedding: return pack_embedding(weight);
    case WeightRole::kNorm:
    case WeightRole::kBias: return pack_vector(weight);
    case WeightRole::kGate: return as_weight<MatrixWeight>(PackedMatrix::pack_f32(all));
    case WeightRole::kKvUp: return pack_kv_up(weight, kv_up);
    case WeightRole::kLinear:
    case WeightRole::kHead: return as_weight<MatrixWeight>(PackedMatrix::pack(all));
  }
  return error(ErrorCode::kInternal, "unknown weight role");
}

}  // namespace manta::backend::cpu
