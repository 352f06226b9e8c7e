// Weights as the model hands them to a backend, and as it gets them back. A PackedWeight's layout is the backend's
// secret (transposed, tiled, FP8 with its scales, bf16, float32); replicas of an expert hold identical packed bytes.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "backend/random_values.h"
#include "base/tensor.h"

namespace manta::backend {

// What a matrix is for; backends may pack each role differently.
enum class WeightRole {
  kEmbedding,  // [vocab, D], looked up by row
  kLinear,     // [out, in] as stored
  kKvUp,       // kv_b_proj [H * (nope + v), C]: split into the absorbed W_UK and W_UV
  kGate,       // [E, D] router
  kNorm,       // [n] RMSNorm gain
  kBias,       // [n] f32, e_score_correction_bias
  kHead,       // [vocab, D]
};

// A stored tensor. `scale_inv` is [ceil(out/128), ceil(in/128)] f32 for F8_E4M3 data (w = q * scale_inv), else empty.
struct WeightView {
  Tensor data;
  Tensor scale_inv;
  std::optional<RandomMatrix> random;  // data.data is null: pack() makes the values (Caps::makes_random_weights)
};

class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual size_t num_bytes() const = 0;
};
using PackedWeightPtr = std::unique_ptr<PackedWeight>;

struct AttnWeights {
  PackedWeightPtr input_norm;  // [D]
  PackedWeightPtr q_proj;      // [H * (nope + rope), D], only without q compression
  PackedWeightPtr q_a_proj;    // [q_lora_rank, D]
  PackedWeightPtr q_a_norm;    // [q_lora_rank]
  PackedWeightPtr q_b_proj;    // [H * (nope + rope), q_lora_rank]
  PackedWeightPtr kv_a_proj;   // [C + rope, D]
  PackedWeightPtr kv_a_norm;   // [C]
  PackedWeightPtr kv_b_proj;   // kKvUp
  PackedWeightPtr o_proj;      // [D, H * v]
};

struct MlpWeights {           // dense layers and the shared expert
  PackedWeightPtr gate_proj;  // [I, D]
  PackedWeightPtr up_proj;    // [I, D]
  PackedWeightPtr down_proj;  // [D, I]
};

struct GateWeights {
  PackedWeightPtr weight;           // [E, D]
  PackedWeightPtr correction_bias;  // [E] f32, null with softmax scoring
};

struct ExpertWeights {
  std::vector<MlpWeights> local;  // by local slot; [num_local_experts]
};

struct LayerWeights {
  AttnWeights attn;
  PackedWeightPtr post_attn_norm;  // [D]
  MlpWeights dense_mlp;            // dense layers only
  GateWeights gate;                // MoE layers only, and below
  ExpertWeights experts;
  MlpWeights shared_expert;
};

struct MtpWeights {
  PackedWeightPtr enorm;    // [D], of the next token's embedding
  PackedWeightPtr hnorm;    // [D], of the hidden state
  PackedWeightPtr eh_proj;  // [D, 2D]
  PackedWeightPtr norm;     // [D], shared_head.norm
  // Embedding and head are the main model's.
};

struct HeadWeights {
  PackedWeightPtr norm;  // [D], final RMSNorm
  PackedWeightPtr head;  // [vocab, D]
};

}  // namespace manta::backend
