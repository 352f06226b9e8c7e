#include "backend/ref/ref_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "backend/host/float_formats.h"

namespace manta::backend::ref {
namespace {

// [rows, cols] -> [cols, rows], in blocks so that both sides stay in cache.
void transpose(const float* from, int64_t rows, int64_t cols, float* to) {
  constexpr int64_t kBlock = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (int64_t c0 = 0; c0 < cols; c0 += kBlock) {
      for (int64_t r = r0; r < std::min(r0 + kBlock, rows); ++r) {
        for (int64_t c = c0; c < std::min(c0 + kBlock, cols); ++c) to[c * rows + r] = from[r * cols + c];
      }
    }
  }
}

// kv_b_proj holds, head after head, nope rows of W_UK and v rows of W_UV, [.., C] each.
Result<std::vector<float>> split_kv_up(const std::vector<float>& stored, const Tensor& data, const ModelShape& s) {
  const int64_t heads = s.num_attention_heads, nope = s.qk_nope_head_dim, v = s.v_head_dim, c = s.kv_lora_rank;
  if (data.shape[0] != heads * (nope + v) || data.shape[1] != c) {
    return error(ErrorCode::kInvalidArgument, fmt::format("kv_b_proj is {}, must be [{}, {}] ({} heads of {} + {})",
                                                          data.describe(), heads * (nope + v), c, heads, nope, v));
  }
  std::vector<float> out(stored.size());
  float* w_uk = out.data();
  float* w_uv = out.data() + heads * nope * c;
  for (int64_t h = 0; h < heads; ++h) {
    const float* head = stored.data() + h * (nope + v) * c;
    std::copy_n(head, nope * c, w_uk + h * nope * c);
    transpose(head + nope * c, v, c, w_uv + h * c * v);
  }
  return out;
}

}  // namespace

Result<PackedWeightPtr> pack_ref_weight(const WeightView& weight, WeightRole role, const ModelShape& shape) {
  const Tensor& data = weight.data;
  const bool is_vector = role == WeightRole::kNorm || role == WeightRole::kBias;
  if (data.rank != (is_vector ? 1 : 2)) {
    return error(ErrorCode::kInvalidArgument, fmt::format("a weight {} where one with {} is needed", data.describe(),
                                                          is_vector ? "one axis" : "two axes"));
  }
  std::vector<float> stored(data.num_elements());
  MANTA_TRY(host::to_f32(weight, stored.data()));

  auto packed = std::make_unique<RefWeight>();
  packed->is_fp8 = data.dtype == DType::kF8E4M3;
  packed->out = data.shape[0];
  packed->in = is_vector ? 1 : data.shape[1];
  if (is_vector || role == WeightRole::kEmbedding) {
    packed->data = std::move(stored);
  } else if (role == WeightRole::kKvUp) {
    MANTA_ASSIGN(packed->data, split_kv_up(stored, data, shape));
  } else {
    packed->data.resize(stored.size());
    transpose(stored.data(), packed->out, packed->in, packed->data.data());
  }
  return PackedWeightPtr(std::move(packed));
}

}  // namespace manta::backend::ref
