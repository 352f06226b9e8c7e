// What the paged latent cache looks like, in numbers. One latent row (compressed_kv, then k_pe) per token and layer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/tensor.h"

namespace manta::kv {

struct CacheGeometry {
  int num_layers = 0;        // main layers, then the MTP module's
  int num_blocks = 0;        // the same on every DP rank of a deployment
  int block_size = 64;       // tokens per block
  int kv_lora_rank = 0;      // latent values per token
  int qk_rope_head_dim = 0;  // rotary key values per token, after the latent ones
  DType dtype = DType::kBF16;

  int row_size() const { return kv_lora_rank + qk_rope_head_dim; }
  size_t bytes_per_block_and_layer() const { return static_cast<size_t>(block_size) * row_size() * dtype_bytes(dtype); }
  size_t bytes_per_block() const { return bytes_per_block_and_layer() * num_layers; }
  size_t total_bytes() const { return bytes_per_block() * num_blocks; }
  int64_t max_num_tokens() const { return static_cast<int64_t>(num_blocks) * block_size; }
};

}  // namespace manta::kv
