// Absorbed multi-head latent attention over the paged bf16 cache. Every row takes the keys in tiles of kKeyTile, cut by
// absolute position and in ascending order, with an online softmax: what a row gets does not depend on how its sequence
// was chunked, which rows share the call, or on threads.
//
// A piece of work is a block of query rows of one request times a group of heads; all of them use a tile of latent rows
// while it is in the cache. Masked keys of a block weigh exactly 0.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/host/thread_team.h"

namespace manta::backend::cpu {

// Buffers of one microbatch.
struct AttentionRows {
  const uint16_t* q = nullptr;  // [T][H][C + rope] bf16: absorbed query, rotated part
  uint16_t* out = nullptr;      // [T][H][ldo] bf16: weighted sum of latent rows; rows without a request become 0
  int64_t ldo = 0;              // C, rounded up to a pair
};

class Attention {
 public:
  Attention(const Kernels& kernels, host::ThreadTeam& team, const ModelShape& shape, const Limits& limits);

  void attend(const StepView& view, const KvLayer& cache, const AttentionRows& rows);
  size_t scratch_bytes() const;

 private:
  struct Piece {
    int request = 0;
    int first_row = 0;
    int num_rows = 0;
    int first_head = 0;
    int num_heads = 0;
    int num_keys = 0;  // that the last row sees
  };
  struct Scratch {
    std::vector<const uint16_t*> q, keys;
    std::vector<int32_t> num_visible;
    std::vector<float> scores, max, sum, rescale, out;
    std::vector<uint16_t> weights, interleaved;
  };

  int64_t plan(const StepView& view);  // fills pieces_, returns an estimate in ns
  void run_piece(const Piece& piece, const StepView& view, const KvLayer& cache, const AttentionRows& rows, Scratch& s);
  void run_tile(const Piece& piece, const StepView& view, const KvLayer& cache, int first_key, Scratch& s);
  void write(const Piece& piece, const AttentionRows& rows, const Scratch& s);

  const Kernels& kernels_;
  host::ThreadTeam& team_;
  int heads_;
  int latent_;
  int width_;  // C + rope
  float softmax_scale_;
  std::vector<Piece> pieces_;     // capacity for any step
  std::vector<Scratch> scratch_;  // by thread
};

}  // namespace manta::backend::cpu
