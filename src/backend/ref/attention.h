// Multi-head latent attention of the reference over the paged latent cache.
//
// The cache is read in tiles of kTile positions, cut by absolute position, with a running softmax: what a row gets
// depends on its position and on the rows before it, not on how the sequence was chunked or which rows share a call.
//
// Absorbed form: a query is taken into the latent space once (q_nope x W_UK), scores are products with cache rows, the
// weighted sum of latent rows is taken out by W_UV. Unabsorbed form: keys and values of every position are made from
// its latent row first, as the paper's equations have it; the same numbers up to rounding, kept as a check.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/ref/ref_weights.h"

namespace manta::backend::ref {

class Attention {
 public:
  static constexpr int kTile = 64;     // positions
  static constexpr int kMaxRows = 16;  // rows of a call

  Attention(const ModelShape& shape, bool absorbed);

  bool absorbed() const { return absorbed_; }
  // Floats of one row's queries: [H, C + rope] absorbed, else [H, nope + rope].
  int64_t query_size() const { return heads_ * query_dim_; }

  // Scratch of one thread.
  struct Scratch {
    std::vector<float> rows;        // [kTile, C + rope] latent rows of the tile
    std::vector<float> transposed;  // [C + rope, kTile]
    std::vector<float> keys;        // unabsorbed: [nope, kTile] of one head
    std::vector<float> values;      // unabsorbed: [kTile, v] of one head
    std::vector<float> scores;      // [kMaxRows, H, kTile]
    std::vector<float> sums;        // [kMaxRows, H, C or v]
    std::vector<float> max, total;  // [kMaxRows, H]
  };
  Scratch make_scratch() const;

  // Rows of one sequence, ascending positions; -1 marks a dead row, whose output is 0.
  struct Rows {
    int num_rows = 0;  // <= kMaxRows
    const int32_t* positions = nullptr;
    const float* queries = nullptr;        // [num_rows, query_size()]
    float* out = nullptr;                  // [num_rows, H * v]
    const int32_t* block_table = nullptr;  // of the sequence
  };
  void attend(const Rows& rows, const KvLayer& cache, const RefWeight& kv_up, Scratch& scratch) const;

 private:
  void load_tile(const Rows& rows, const KvLayer& cache, int first, int count, Scratch& s) const;
  void score_tile(const Rows& rows, const RefWeight& kv_up, Scratch& s) const;
  int soften_tile(const Rows& rows, int first, Scratch& s) const;
  void sum_tile(const Rows& rows, const RefWeight& kv_up, int first, bool full, Scratch& s) const;
  void sum_rows(int row, int num_rows, int count, int head, const float* values, int64_t stride, Scratch& s) const;
  void write_out(const Rows& rows, const RefWeight& kv_up, Scratch& s) const;

  int64_t heads_, nope_, rope_, v_, latent_;
  int64_t query_dim_;  // of one head
  int64_t sum_dim_;    // of one head: C absorbed, v unabsorbed
  float softmax_scale_;
  bool absorbed_;
};

}  // namespace manta::backend::ref
