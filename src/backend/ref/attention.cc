#include "backend/ref/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/ref/loops.h"

namespace manta::backend::ref {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Positions of the tile at `first` that a row at `position` sees.
int num_seen(int position, int first) {
  return std::clamp(position + 1 - first, 0, Attention::kTile);
}

}  // namespace

Attention::Attention(const ModelShape& s, bool absorbed)
    : heads_(s.num_attention_heads),
      nope_(s.qk_nope_head_dim),
      rope_(s.qk_rope_head_dim),
      v_(s.v_head_dim),
      latent_(s.kv_lora_rank),
      query_dim_((absorbed ? latent_ : nope_) + rope_),
      sum_dim_(absorbed ? latent_ : v_),
      softmax_scale_(s.softmax_scale),
      absorbed_(absorbed) {}

Attention::Scratch Attention::make_scratch() const {
  Scratch s;
  s.rows.resize(kTile * (latent_ + rope_));
  s.transposed.resize(s.rows.size());
  if (!absorbed_) {
    s.keys.resize(nope_ * kTile);
    s.values.resize(kTile * v_);
  }
  s.scores.resize(kMaxRows * heads_ * kTile);
  s.sums.resize(kMaxRows * heads_ * sum_dim_);
  s.max.resize(kMaxRows * heads_);
  s.total.resize(kMaxRows * heads_);
  return s;
}

void Attention::attend(const Rows& rows, const KvLayer& cache, const RefWeight& kv_up, Scratch& s) const {
  const int last = *std::max_element(rows.positions, rows.positions + rows.num_rows);
  std::fill(s.sums.begin(), s.sums.end(), 0.0f);
  std::fill(s.total.begin(), s.total.end(), 0.0f);
  std::fill(s.max.begin(), s.max.end(), kLowest);
  for (int first = 0; first <= last; first += kTile) {
    load_tile(rows, cache, first, std::min<int>(kTile, last + 1 - first), s);
    score_tile(rows, kv_up, s);
    const int num_full = soften_tile(rows, first, s);
    sum_tile(rows, kv_up, first, num_full == rows.num_rows, s);
  }
  write_out(rows, kv_up, s);
}

// Positions that no row sees are 0: what the cache holds there may be anything.
void Attention::load_tile(const Rows& rows, const KvLayer& cache, int first, int count, Scratch& s) const {
  const int64_t width = latent_ + rope_, block_size = cache.rows.shape[1];
  std::fill(s.rows.begin() + count * width, s.rows.end(), 0.0f);
  for (int j = 0; j < count; ++j) {
    const int64_t position = first + j;
    const int64_t row = rows.block_table[position / block_size] * block_size + position % block_size;
    std::copy_n(cache.rows.as<float>() + row * width, width, s.rows.begin() + j * width);
  }
  for (int64_t i = 0; i < width; ++i) {
    for (int j = 0; j < kTile; ++j) s.transposed[i * kTile + j] = s.rows[j * width + i];
  }
}

void Attention::score_tile(const Rows& rows, const RefWeight& kv_up, Scratch& s) const {
  std::fill_n(s.scores.begin(), rows.num_rows * heads_ * kTile, 0.0f);
  if (absorbed_) {
    multiply_add(rows.queries, query_dim_, s.transposed.data(), kTile, s.scores.data(), kTile, rows.num_rows * heads_,
                 kTile, query_dim_);
    return;
  }
  for (int64_t h = 0; h < heads_; ++h) {
    std::fill(s.keys.begin(), s.keys.end(), 0.0f);
    multiply_add(kv_up.data.data() + h * nope_ * latent_, latent_, s.transposed.data(), kTile, s.keys.data(), kTile,
                 nope_, kTile, latent_);
    const float* queries = rows.queries + h * query_dim_;
    float* scores = s.scores.data() + h * kTile;
    multiply_add(queries, heads_ * query_dim_, s.keys.data(), kTile, scores, heads_ * kTile, rows.num_rows, kTile,
                 nope_);
    multiply_add(queries + nope_, heads_ * query_dim_, s.transposed.data() + latent_ * kTile, kTile, scores,
                 heads_ * kTile, rows.num_rows, kTile, rope_);
  }
}

// Scores become weights exp(score - running maximum); earlier sums are scaled to the new maximum.
// Returns how many rows see the whole tile.
int Attention::soften_tile(const Rows& rows, int first, Scratch& s) const {
  int num_full = 0;
  for (int r = 0; r < rows.num_rows; ++r) {
    const int seen = num_seen(rows.positions[r], first);
    if (seen == 0) continue;
    num_full += seen == kTile;
    for (int64_t h = 0; h < heads_; ++h) {
      const int64_t i = r * heads_ + h;
      float* scores = &s.scores[i * kTile];
      float max = s.max[i];
      for (int j = 0; j < seen; ++j) max = std::max(max, scores[j] *= softmax_scale_);
      const float shrink = std::exp(s.max[i] - max);  // 0 in the first tile
      float total = s.total[i] * shrink;
      for (int j = 0; j < seen; ++j) total += scores[j] = std::exp(scores[j] - max);
      if (shrink != 1.0f) {
        for (int64_t c = 0; c < sum_dim_; ++c) s.sums[i * sum_dim_ + c] *= shrink;
      }
      s.max[i] = max;
      s.total[i] = total;
    }
  }
  return num_full;
}

void Attention::sum_tile(const Rows& rows, const RefWeight& kv_up, int first, bool full, Scratch& s) const {
  const int64_t width = latent_ + rope_;
  for (int64_t h = 0; h < (absorbed_ ? 1 : heads_); ++h) {
    const float* values = s.rows.data();
    int64_t stride = width;
    if (!absorbed_) {
      std::fill(s.values.begin(), s.values.end(), 0.0f);
      multiply_add(s.rows.data(), width, kv_up.data.data() + heads_ * nope_ * latent_ + h * latent_ * v_, v_,
                   s.values.data(), v_, kTile, v_, latent_);
      values = s.values.data();
      stride = v_;
    }
    if (full) {
      sum_rows(0, rows.num_rows, kTile, static_cast<int>(h), values, stride, s);
      continue;
    }
    // Rows that see less end their sums earlier: adding 0 x a later row would let its NaN in.
    for (int r = 0; r < rows.num_rows; ++r) {
      sum_rows(r, 1, num_seen(rows.positions[r], first), static_cast<int>(h), values, stride, s);
    }
  }
}

// Absorbed: all heads of the rows share the tile's latent rows as values. Unabsorbed: one head has its own.
void Attention::sum_rows(int row, int num_rows, int count, int head, const float* values, int64_t stride,
                         Scratch& s) const {
  const float* weights = &s.scores[row * heads_ * kTile];
  float* sums = &s.sums[row * heads_ * sum_dim_];
  if (absorbed_) {
    multiply_add(weights, kTile, values, stride, sums, sum_dim_, num_rows * heads_, sum_dim_, count);
  } else {
    multiply_add(weights + head * kTile, heads_ * kTile, values, stride, sums + head * sum_dim_, heads_ * sum_dim_,
                 num_rows, sum_dim_, count);
  }
}

void Attention::write_out(const Rows& rows, const RefWeight& kv_up, Scratch& s) const {
  for (int64_t i = 0; i < rows.num_rows * heads_; ++i) {
    if (rows.positions[i / heads_] < 0) continue;  // its sums are 0 as they are
    for (int64_t c = 0; c < sum_dim_; ++c) s.sums[i * sum_dim_ + c] /= s.total[i];
  }
  if (!absorbed_) {
    std::copy_n(s.sums.begin(), rows.num_rows * heads_ * v_, rows.out);
    return;
  }
  std::fill_n(rows.out, rows.num_rows * heads_ * v_, 0.0f);
  const float* w_uv = kv_up.data.data() + heads_ * nope_ * latent_;
  for (int64_t h = 0; h < heads_; ++h) {
    multiply_add(s.sums.data() + h * latent_, heads_ * latent_, w_uv + h * latent_ * v_, v_, rows.out + h * v_,
                 heads_ * v_, rows.num_rows, v_, latent_);
  }
}

}  // namespace manta::backend::ref
