// Weights as the cpu backend keeps them. A matrix [n, k] is cut into panels of 64 rows (output columns of the GEMM);
// a panel holds its pairs of k one after the other:
//   bf16: [ceil(k/2)][64][2] values
//   FP8:  [ceil(k/2)][2][64] bytes, each 64 covering 32 columns x 2, in the order in which AVX-512 unpacks bytes
//         (fp8_pair_offset); one float32 scale per panel and 128 of k. FP8 bytes are exact in bf16, so keeping them
//         halves what a token must read and rounds nothing.
//   f32:  [k][64] values
// Rows and k beyond the matrix are zero. The bytes depend on the checkpoint alone, not on the processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/weights.h"
#include "base/result.h"

namespace manta::backend::cpu {

enum class MatrixFormat : uint8_t { kBf16, kFp8, kF32 };

class PackedMatrix {
 public:
  // Which part of a stored matrix to pack: rows [first_row, first_row + num_rows) of it, or those transposed (then
  // the stored columns become the rows here).
  struct Source {
    const WeightView* weight = nullptr;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    bool transposed = false;
  };
  // FP8 stays FP8 where the scale blocks fit the panels, else it becomes bf16; F32 and F16 become bf16.
  static Result<PackedMatrix> pack(const Source& source);
  static Result<PackedMatrix> pack_f32(const Source& source);

  MatrixFormat format() const { return format_; }
  int n() const { return n_; }
  int k() const { return k_; }
  int num_panels() const { return (n_ + kPanelColumns - 1) / kPanelColumns; }
  int num_scale_blocks() const { return (k_ + kScaleBlock - 1) / kScaleBlock; }
  int num_pairs() const { return (k_ + 1) / 2; }
  size_t panel_bytes() const;
  size_t num_bytes() const { return bytes_; }
  const void* panel(int i) const { return data_.get() + panel_bytes() * i; }
  const float* scales(int panel) const { return scales_ + static_cast<size_t>(panel) * num_scale_blocks(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  static Result<PackedMatrix> allocate(MatrixFormat format, int64_t n, int64_t k);

  MatrixFormat format_ = MatrixFormat::kBf16;
  int n_ = 0;
  int k_ = 0;
  size_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
  float* scales_ = nullptr;  // behind the panels, in the same block
};

// Where the pair of column c (of 64) stands in the 128 bytes of one step of an FP8 panel.
constexpr int fp8_pair_offset(int column) {
  const int half = column / 32, c = column % 32;
  return half * 64 + (c % 16) / 4 * 16 + (c % 4) * 2 + (c >= 16 ? 8 : 0);
}

struct MatrixWeight final : PackedWeight {
  explicit MatrixWeight(PackedMatrix m) : matrix(std::move(m)) {}
  size_t num_bytes() const override { return matrix.num_bytes(); }
  PackedMatrix matrix;
};

// kv_b_proj, absorbed: per head W_UK transposed [C, nope] (q_nope -> latent) and W_UV [v, C] (latent -> value).
struct KvUpWeight final : PackedWeight {
  size_t num_bytes() const override;
  std::vector<PackedMatrix> key_up;
  std::vector<PackedMatrix> value_up;
  std::vector<PackedMatrix> key_rows;  // W_UK as stored, [nope, C] (latent -> key): only for the unabsorbed form
};

struct VectorWeight final : PackedWeight {
  size_t num_bytes() const override { return values.size() * sizeof(float); }
  std::vector<float> values;
};

// Rows to look up, bf16 where the checkpoint has that (or FP8), else float32.
struct EmbeddingWeight final : PackedWeight {
  size_t num_bytes() const override { return bf16.size() * sizeof(uint16_t) + f32.size() * sizeof(float); }
  int64_t hidden_size = 0;
  std::vector<uint16_t> bf16;
  std::vector<float> f32;
};

// What pack() of the backend does. kInvalidArgument when dtype, rank or shape do not fit the role.
struct KvUpShape {
  int num_heads = 0;
  int qk_nope_head_dim = 0;
  int v_head_dim = 0;
  bool unabsorbed = false;
};
Result<PackedWeightPtr> pack_weight(const WeightView& weight, WeightRole role, const KvUpShape& kv_up);

}  // namespace manta::backend::cpu
