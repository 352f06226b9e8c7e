#include "random_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/host/float_formats.h"

namespace manta::backend::testing {
namespace {

void fill_fp8(StoredWeight& w, int64_t out, int64_t in, float spread, std::mt19937_64& rng) {
  const int64_t row_blocks = (out + 127) / 128, col_blocks = (in + 127) / 128;
  std::uniform_int_distribution<int> byte(0, 255);
  std::uniform_real_distribution<float> scale(0.5f, 2.0f);
  for (uint8_t& b : w.bytes) {
    b = static_cast<uint8_t>(byte(rng));
    b = (b & 0x80) | (b & 0x7f) % 0x78;  // up to 240; never a NaN
  }
  // Random e4m3 bytes have a root mean square of about 70.
  for (int64_t i = 0; i < row_blocks * col_blocks; ++i) w.scales.push_back(spread / 70.0f * scale(rng));
  w.view.scale_inv = make_tensor(w.scales.data(), DType::kF32, {row_blocks, col_blocks});
}

}  // namespace

StoredWeight RandomWeights::matrix(int64_t out, int64_t in, DType dtype) {
  StoredWeight w;
  w.bytes.resize(out * in * dtype_bytes(dtype));
  w.view.data = make_tensor(w.bytes.data(), dtype, {out, in});
  const float spread = 1.0f / std::sqrt(static_cast<float>(in));
  if (dtype == DType::kF8E4M3) {
    fill_fp8(w, out, in, spread, rng_);
    return w;
  }
  std::normal_distribution<float> normal(0.0f, spread);
  for (int64_t i = 0; i < out * in; ++i) {
    const float x = normal(rng_);
    if (dtype == DType::kBF16) w.view.data.as<uint16_t>()[i] = host::to_bf16(x);
    if (dtype == DType::kF32) w.view.data.as<float>()[i] = x;
  }
  return w;
}

StoredWeight RandomWeights::vector(int64_t n, float mean, float spread, DType dtype) {
  StoredWeight w;
  w.bytes.resize(n * dtype_bytes(dtype));
  w.view.data = make_tensor(w.bytes.data(), dtype, {n});
  std::normal_distribution<float> normal(mean, spread);
  for (int64_t i = 0; i < n; ++i) {
    const float x = normal(rng_);
    if (dtype == DType::kBF16) w.view.data.as<uint16_t>()[i] = host::to_bf16(x);
    if (dtype == DType::kF32) w.view.data.as<float>()[i] = x;
  }
  return w;
}

PackedWeightPtr RandomWeights::pack_one(Backend& backend, const StoredWeight& weight, WeightRole role) {
  auto packed = backend.pack(weight.view, role);
  EXPECT_TRUE(packed.ok()) << (packed.ok() ? "" : packed.error().message);
  return packed.ok() ? std::move(*packed) : nullptr;
}

PackedWeightPtr RandomWeights::linear(Backend& backend, int64_t out, int64_t in, WeightRole role) {
  return pack_one(backend, matrix(out, in, linear_dtype_), role);
}

PackedWeightPtr RandomWeights::norm(Backend& backend, int64_t n) {
  return pack_one(backend, vector(n, 1.0f, 0.2f, DType::kBF16), WeightRole::kNorm);
}

MlpWeights RandomWeights::mlp(Backend& backend, int64_t intermediate) {
  MlpWeights w;
  w.gate_proj = linear(backend, intermediate, shape_.hidden_size);
  w.up_proj = linear(backend, intermediate, shape_.hidden_size);
  w.down_proj = linear(backend, shape_.hidden_size, intermediate);
  return w;
}

PackedModel RandomWeights::pack(Backend& backend, const std::vector<float>& bias) {
  const ModelShape& s = shape_;
  const int64_t heads = s.num_attention_heads, q_size = heads * (s.qk_nope_head_dim + s.qk_rope_head_dim);
  PackedModel m;
  m.embedding = pack_one(backend, matrix(s.vocab_size, s.hidden_size, DType::kBF16), WeightRole::kEmbedding);
  m.attn.input_norm = norm(backend, s.hidden_size);
  if (s.q_lora_rank > 0) {
    m.attn.q_a_proj = linear(backend, s.q_lora_rank, s.hidden_size);
    m.attn.q_a_norm = norm(backend, s.q_lora_rank);
    m.attn.q_b_proj = linear(backend, q_size, s.q_lora_rank);
  } else {
    m.attn.q_proj = linear(backend, q_size, s.hidden_size);
  }
  m.attn.kv_a_proj = linear(backend, s.kv_lora_rank + s.qk_rope_head_dim, s.hidden_size);
  m.attn.kv_a_norm = norm(backend, s.kv_lora_rank);
  m.attn.kv_b_proj = linear(backend, heads * (s.qk_nope_head_dim + s.v_head_dim), s.kv_lora_rank, WeightRole::kKvUp);
  m.attn.o_proj = linear(backend, s.hidden_size, heads * s.v_head_dim);
  m.post_attn_norm = norm(backend, s.hidden_size);
  m.dense = mlp(backend, s.intermediate_size);
  m.gate.weight = pack_one(backend, matrix(s.n_routed_experts, s.hidden_size, DType::kBF16), WeightRole::kGate);
  if (s.scoring_func == ScoringFunc::kSigmoid) {
    StoredWeight stored = vector(s.n_routed_experts, 0.0f, 0.0f, DType::kF32);
    std::memcpy(stored.bytes.data(), bias.data(), stored.bytes.size());
    m.gate.correction_bias = pack_one(backend, stored, WeightRole::kBias);
  }
  for (int e = 0; e < s.n_routed_experts; ++e) m.experts.local.push_back(mlp(backend, s.moe_intermediate_size));
  m.shared = mlp(backend, int64_t{s.moe_intermediate_size} * std::max(s.n_shared_experts, 1));
  m.head.norm = norm(backend, s.hidden_size);
  m.head.head = pack_one(backend, matrix(s.vocab_size, s.hidden_size, DType::kBF16), WeightRole::kHead);
  m.mtp.enorm = norm(backend, s.hidden_size);
  m.mtp.hnorm = norm(backend, s.hidden_size);
  m.mtp.eh_proj = pack_one(backend, matrix(s.hidden_size, 2 * s.hidden_size, DType::kBF16), WeightRole::kLinear);
  m.mtp.norm = norm(backend, s.hidden_size);
  return m;
}

}  // namespace manta::backend::testing
