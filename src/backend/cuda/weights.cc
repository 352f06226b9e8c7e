#include "backend/cuda/weights.h"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/tensor_map.h"
#include "backend/cuda/weight_upload.h"
#include "backend/host/float_formats.h"

namespace manta::backend::cuda {
namespace {

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

Result<void*> allocate(DeviceMemory& memory, WeightUpload& upload, size_t num_bytes) {
  MANTA_ASSIGN(void* to, memory.allocate_unset("a weight", num_bytes));
  MANTA_TRY(upload.zero(static_cast<std::byte*>(to) + num_bytes, DeviceMemory::room_for(num_bytes) - num_bytes));
  return to;
}

Result<void*> place(DeviceMemory& memory, WeightUpload& upload, const void* from, size_t num_bytes) {
  MANTA_ASSIGN(void* to, allocate(memory, upload, num_bytes));
  MANTA_TRY(upload.copy(to, from, num_bytes));
  return to;
}

// A matrix as it is stored, or made as it would be.
Result<void*> place(DeviceMemory& memory, WeightUpload& upload, const WeightView& w) {
  const size_t num_bytes = w.data.num_elements() * dtype_bytes(w.data.dtype);
  if (!w.random) return place(memory, upload, w.data.data, num_bytes);
  MANTA_ASSIGN(void* to, allocate(memory, upload, num_bytes));
  MANTA_TRY(upload.fill_random(to, w.data.dtype, num_bytes, *w.random));
  return to;
}

// Null where the copy engine cannot fetch the matrix.
Result<const CUtensorMap*> make_maps(DeviceMemory& memory, WeightUpload& upload, MapShape shape) {
  static_assert(alignof(CUtensorMap) <= 256);
  if (!can_map(shape)) return static_cast<const CUtensorMap*>(nullptr);
  std::vector<CUtensorMap> maps;
  for (const int box_rows : kWeightBoxRows) {
    shape.box_rows = box_rows;
    maps.push_back(encode_map(shape));
  }
  MANTA_ASSIGN(void* to, place(memory, upload, maps.data(), maps.size() * sizeof(CUtensorMap)));
  return static_cast<const CUtensorMap*>(to);
}

// F32 and F16 as bf16.
Result<std::vector<uint16_t>> rounded(const WeightView& weight) {
  std::vector<float> stored(weight.data.num_elements());
  MANTA_TRY(host::to_f32(weight, stored.data()));
  std::vector<uint16_t> bits(stored.size());
  std::transform(stored.begin(), stored.end(), bits.begin(), host::to_bf16);
  return bits;
}

Status check_scales(const WeightView& w) {
  const int64_t rows = (w.data.shape[0] + 127) / 128, cols = (w.data.shape[1] + 127) / 128;
  const Tensor& s = w.scale_inv;
  if (s.data != nullptr && s.dtype == DType::kF32 && s.rank == 2 && s.shape[0] == rows && s.shape[1] == cols &&
      s.is_contiguous()) {
    return {};
  }
  return invalid(fmt::format("{} needs weight_scale_inv F32[{}, {}], found {}", w.data.describe(), rows, cols,
                             s.data == nullptr ? "none" : s.describe()));
}

Result<PackedWeightPtr> pack_matrix(const WeightView& w, WeightUpload& upload, bool keep_fp8) {
  const Tensor& data = w.data;
  auto out = std::make_unique<MatrixWeight>();
  out->n = static_cast<int>(data.shape[0]);
  out->k = static_cast<int>(data.shape[1]);
  if (out->k % 8 != 0) {
    return invalid(
        fmt::format("a matrix {}: the cuda backend needs its last axis to be a multiple of 8", data.describe()));
  }
  if (data.dtype == DType::kF8E4M3 && keep_fp8) {
    MANTA_TRY(check_scales(w));
    out->is_fp8 = true;
    MANTA_ASSIGN(out->data, place(out->memory, upload, w));
    const size_t scale_bytes = w.scale_inv.num_elements() * sizeof(float);
    MANTA_ASSIGN(void* scale, place(out->memory, upload, w.scale_inv.data, scale_bytes));
    out->scale = static_cast<const float*>(scale);
  } else if (data.dtype == DType::kBF16) {
    MANTA_ASSIGN(out->data, place(out->memory, upload, w));
  } else {
    if (w.random) return invalid(fmt::format("{}: only FP8 linear layers and bf16 matrices are made", data.describe()));
    MANTA_ASSIGN(const std::vector<uint16_t> bits, rounded(w));
    MANTA_ASSIGN(out->data, place(out->memory, upload, bits.data(), bits.size() * sizeof(uint16_t)));
  }
  MANTA_ASSIGN(out->maps, make_maps(out->memory, upload,
                                    {.data = out->data,
                                     .elem_bytes = out->is_fp8 ? 1 : 2,
                                     .columns = out->k,
                                     .rows = out->n,
                                     .row_stride = out->k}));
  return PackedWeightPtr(std::move(out));
}

Result<PackedWeightPtr> pack_vector(const WeightView& w, WeightUpload& upload) {
  std::vector<float> stored(w.data.num_elements());
  MANTA_TRY(host::to_f32(w, stored.data()));
  auto out = std::make_unique<VectorWeight>();
  MANTA_ASSIGN(void* to, place(out->memory, upload, stored.data(), stored.size() * sizeof(float)));
  out->values = static_cast<float*>(to);
  return PackedWeightPtr(std::move(out));
}

Result<PackedWeightPtr> pack_kv_up(const WeightView& w, WeightUpload& upload, const ModelShape& s) {
  const int heads = s.num_attention_heads, nope = s.qk_nope_head_dim, v = s.v_head_dim, latent = s.kv_lora_rank;
  if (w.data.shape[0] != int64_t{heads} * (nope + v) || w.data.shape[1] != latent) {
    return invalid(fmt::format("kv_b_proj is {}, must be [{}, {}] ({} heads of {} + {})", w.data.describe(),
                               heads * (nope + v), latent, heads, nope, v));
  }
  MANTA_ASSIGN(const PackedWeightPtr stored, pack_matrix(w, upload, true));
  auto out = std::make_unique<KvUpWeight>();
  const size_t values = sizeof(__nv_bfloat16) * heads * latent;
  MANTA_ASSIGN(void* key_up, allocate(out->memory, upload, values * nope));
  MANTA_ASSIGN(void* value_up, allocate(out->memory, upload, values * v));
  out->key_up = static_cast<__nv_bfloat16*>(key_up);
  out->value_up = static_cast<__nv_bfloat16*>(value_up);
  MANTA_ASSIGN(out->key_up_maps,
               make_maps(out->memory, upload,
                         {.data = out->key_up, .columns = nope, .rows = int64_t{heads} * latent, .row_stride = nope}));
  MANTA_ASSIGN(out->value_up_maps,
               make_maps(out->memory, upload,
                         {.data = out->value_up, .columns = latent, .rows = int64_t{heads} * v, .row_stride = latent}));
  const MatrixWeight& m = matrix(stored);
  split_kv_up({m.data, m.scale, heads, nope, v, latent, out->key_up, out->value_up}, upload.stream());
  MANTA_TRY(upload.finish());  // before `stored` goes
  return PackedWeightPtr(std::move(out));
}

}  // namespace

Result<PackedWeightPtr> pack_weight(const WeightView& weight, WeightRole role, const ModelShape& shape) {
  const Tensor& data = weight.data;
  const bool is_vector = role == WeightRole::kNorm || role == WeightRole::kBias;
  if (data.rank != (is_vector ? 1 : 2)) {
    return invalid(
        fmt::format("a weight {} where one with {} is needed", data.describe(), is_vector ? "one axis" : "two axes"));
  }
  if (!data.is_contiguous()) return invalid(fmt::format("{}: a weight must be contiguous", data.describe()));
  MANTA_ASSIGN(WeightUpload * upload, WeightUpload::of_this_thread());
  MANTA_ASSIGN(PackedWeightPtr packed, is_vector ? pack_vector(weight, *upload)
                                       : role == WeightRole::kKvUp
                                           ? pack_kv_up(weight, *upload, shape)
                                           : pack_matrix(weight, *upload, role == WeightRole::kLinear));
  MANTA_TRY(upload->finish());
  return packed;
}

}  // namespace manta::backend::cuda
