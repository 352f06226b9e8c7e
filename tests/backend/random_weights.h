// Weights of any shape for tests, the same for every backend: values depend on the seed only.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace manta::backend::testing {

// One layer of each kind and everything around them, packed by one backend.
struct PackedModel {
  PackedWeightPtr embedding;
  AttnWeights attn;
  PackedWeightPtr post_attn_norm;
  MlpWeights dense;
  GateWeights gate;
  ExpertWeights experts;  // all of them
  MlpWeights shared;
  HeadWeights head;
  MtpWeights mtp;
};

// A stored tensor and its bytes.
struct StoredWeight {
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  WeightView view;
};

class RandomWeights {
 public:
  RandomWeights(const ModelShape& shape, DType linear_dtype, uint64_t seed)
      : shape_(shape), linear_dtype_(linear_dtype), rng_(seed) {}

  // Entries of about 1 / sqrt(in), so that a unit vector stays one.
  StoredWeight matrix(int64_t out, int64_t in, DType dtype);
  StoredWeight vector(int64_t n, float mean, float spread, DType dtype);

  // EXPECTs that every pack() succeeds. `bias`: the correction bias, [n_routed_experts].
  PackedModel pack(Backend& backend, const std::vector<float>& bias);

 private:
  PackedWeightPtr pack_one(Backend& backend, const StoredWeight& weight, WeightRole role);
  PackedWeightPtr linear(Backend& backend, int64_t out, int64_t in, WeightRole role = WeightRole::kLinear);
  PackedWeightPtr norm(Backend& backend, int64_t n);
  MlpWeights mlp(Backend& backend, int64_t intermediate);

  ModelShape shape_;
  DType linear_dtype_;
  std::mt19937_64 rng_;
};

}  // namespace manta::backend::testing
