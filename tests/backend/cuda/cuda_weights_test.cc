// Dummy weights that the device makes are those that the host would have made.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backend/cuda/weights.h"
#include "device_access.h"
#include "ep/expert_map.h"
#include "model/loader.h"

namespace manta::backend::testing {
namespace {

std::vector<uint8_t> bytes_at(const void* device, size_t num_bytes) {
  std::vector<uint8_t> out(num_bytes);
  EXPECT_EQ(cudaMemcpy(out.data(), device, num_bytes, cudaMemcpyDeviceToHost), cudaSuccess);
  return out;
}

void expect_same(const PackedWeightPtr& a, const PackedWeightPtr& b, const std::string& name) {
  const cuda::MatrixWeight &x = cuda::matrix(a), &y = cuda::matrix(b);
  ASSERT_EQ(x.is_fp8, y.is_fp8) << name;
  const size_t num_bytes = static_cast<size_t>(x.n) * x.k * (x.is_fp8 ? 1 : 2);
  EXPECT_EQ(bytes_at(x.data, num_bytes), bytes_at(y.data, num_bytes)) << name;
}

TEST(CudaDummyWeights, AreTheHosts) {
  SKIP_WITHOUT_GPU();
  auto config = model::load_config("models/tiny-v3", "");
  ASSERT_TRUE(config.ok()) << config.error().message;
  auto backend = make_backend("cuda", {});
  ASSERT_TRUE(backend.ok()) << backend.error().message;
  ASSERT_TRUE((*backend)->init(config->shape, {.max_num_seqs = 1, .max_num_tokens = 16, .max_model_len = 64}).ok());
  const int experts = config->shape.n_routed_experts;
  const auto map = ep::linear_expert_map(model::num_moe_rows(config->shape), experts, 0, 1, Epoch{});
  ASSERT_TRUE(map.ok());
  std::vector<std::unique_ptr<model::Weights>> made;
  for (const bool on_device : {true, false}) {
    const auto source = model::make_dummy_weights(*config, 7, on_device);
    auto weights = model::load_weights(*config, *source, **backend, {.experts = {&*map, 0, 1}});
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    made.push_back(std::move(*weights));
  }
  expect_same(made[0]->embedding, made[1]->embedding, "embedding");
  expect_same(made[0]->head.head, made[1]->head.head, "head");
  const size_t last = made[0]->layers.size() - 1;
  for (const size_t i : {size_t{0}, last}) {
    const LayerWeights &a = made[0]->layers[i], &b = made[1]->layers[i];
    expect_same(a.attn.q_b_proj, b.attn.q_b_proj, "q_b_proj");
    expect_same(a.attn.kv_a_proj, b.attn.kv_a_proj, "kv_a_proj");
    expect_same(a.attn.o_proj, b.attn.o_proj, "o_proj");
  }
  expect_same(made[0]->layers[last].gate.weight, made[1]->layers[last].gate.weight, "router");
  for (int e = 0; e < experts; ++e) {
    const MlpWeights &a = made[0]->layers[last].experts.local[e], &b = made[1]->layers[last].experts.local[e];
    expect_same(a.gate_proj, b.gate_proj, "gate_proj");
    expect_same(a.down_proj, b.down_proj, "down_proj");
  }
}

}  // namespace
}  // namespace manta::backend::testing
