#include "backend/cpu/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cpu/gemm.h"

namespace manta::backend::cpu {
namespace {

// Queries (row, head) of a piece: enough of them to use a tile of keys well, few enough that their float32 sums
// (64 x 512 x 4 bytes for DeepSeek-V3) stay in L2. Tuned by bench/cpu_attention_bench.
constexpr int kMaxQueries = 64;
constexpr int kMaxHeads = 16;  // of a group, so that one decode row is several pieces in large models
constexpr int kMinHeads = 4;

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

}  // namespace

Attention::Attention(const Kernels& kernels, host::ThreadTeam& team, const ModelShape& s, const Limits& limits)
    : kernels_(kernels),
      team_(team),
      heads_(s.num_attention_heads),
      latent_(s.kv_lora_rank),
      width_(s.kv_lora_rank + s.qk_rope_head_dim),
      softmax_scale_(s.softmax_scale) {
  pieces_.reserve(static_cast<size_t>(limits.max_num_tokens) * ceil_div(heads_, kMinHeads));
  scratch_.resize(team.num_threads());
  for (Scratch& t : scratch_) {
    t.q.resize(kMaxQueries);
    t.keys.resize(kKeyTile + kKeysAhead);
    t.num_visible.resize(kMaxQueries);
    for (auto* v : {&t.max, &t.sum, &t.rescale}) v->resize(kMaxQueries);
    t.scores.resize(kMaxQueries * kKeyTile);
    t.weights.resize(kMaxQueries * kKeyTile);
    t.interleaved.resize(kKeyTile * 64);
    t.out.resize(static_cast<size_t>(kMaxQueries) * latent_);
  }
}

size_t Attention::scratch_bytes() const {
  const size_t per_thread =
      kMaxQueries * (kKeyTile * 6 + 6 * sizeof(float) + latent_ * sizeof(float)) + kKeyTile * (64 * 2 + 8);
  return per_thread * scratch_.size() + pieces_.capacity() * sizeof(Piece);
}

int64_t Attention::plan(const StepView& view) {
  const int32_t* cu_rows = view.cu_rows.as<int32_t>();
  const int32_t* positions = view.positions.as<int32_t>();
  const int num_rows = view.num_reqs > 0 ? cu_rows[view.num_reqs] : 0;
  // Smaller groups only where there would be too few pieces for the threads; no bit depends on it.
  int group = std::min(heads_, kMaxHeads);
  while (group / 2 >= kMinHeads && num_rows * ceil_div(heads_, group) < 2 * team_.num_threads()) group /= 2;
  const int block = std::max(1, kMaxQueries / group);
  pieces_.clear();
  int64_t products = 0;
  for (int r = 0; r < view.num_reqs; ++r) {
    for (int row = cu_rows[r]; row < cu_rows[r + 1]; row += block) {
      const int count = std::min(block, cu_rows[r + 1] - row);
      const int num_keys = 1 + *std::max_element(positions + row, positions + row + count);
      for (int head = 0; head < heads_; head += group) {
        pieces_.push_back({r, row, count, head, std::min(group, heads_ - head), num_keys});
      }
      products += static_cast<int64_t>(num_keys) * count * heads_ * (width_ + latent_);
    }
  }
  return products / 50;  // a core does some 50 to 100 a nanosecond
}

void Attention::attend(const StepView& view, const KvLayer& cache, const AttentionRows& rows) {
  const int64_t ns = plan(view);
  const int used = view.num_reqs > 0 ? view.cu_rows.as<int32_t>()[view.num_reqs] : 0;
  std::memset(rows.out + used * heads_ * rows.ldo, 0, sizeof(uint16_t) * (view.num_tokens - used) * heads_ * rows.ldo);
  const auto n = static_cast<int64_t>(pieces_.size());
  team_.parallel_for(n, grain_for(n, ns, team_.num_threads()), [&](int64_t begin, int64_t end, int thread) {
    // The last rows of a prompt see the most keys: taken first, they leave small pieces to fill the end with.
    for (int64_t i = begin; i < end; ++i) run_piece(pieces_[n - 1 - i], view, cache, rows, scratch_[thread]);
  });
}

void Attention::run_piece(const Piece& p, const StepView& view, const KvLayer& cache, const AttentionRows& rows,
                          Scratch& s) {
  const int num_queries = p.num_rows * p.num_heads;
  for (int i = 0; i < num_queries; ++i) {
    const int64_t row = p.first_row + i / p.num_heads, head = p.first_head + i % p.num_heads;
    s.q[i] = rows.q + (row * heads_ + head) * width_;
  }
  std::fill_n(s.max.begin(), num_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(s.sum.begin(), num_queries, 0.0f);
  std::fill_n(s.out.begin(), static_cast<size_t>(num_queries) * latent_, 0.0f);
  for (int first_key = 0; first_key < p.num_keys; first_key += kKeyTile) run_tile(p, view, cache, first_key, s);
  write(p, rows, s);
}

void Attention::run_tile(const Piece& p, const StepView& view, const KvLayer& cache, int first_key, Scratch& s) {
  const int num_queries = p.num_rows * p.num_heads;
  const int num_keys = std::min(kKeyTile, p.num_keys - first_key);
  const int64_t slot = view.slots.as<int32_t>()[p.request];
  const int32_t* blocks = view.block_tables.as<int32_t>() + slot * view.block_tables.stride[0];
  const auto block_size = static_cast<int>(cache.rows.shape[1]);
  for (int j = 0; j < kKeyTile + kKeysAhead; ++j) {
    const int position = std::min(first_key + j, p.num_keys - 1);
    const int64_t row = int64_t{blocks[position / block_size]} * block_size + position % block_size;
    s.keys[j] = cache.rows.as<uint16_t>() + row * width_;
  }
  for (int i = 0; i < num_queries; ++i) {
    const int position = view.positions.as<int32_t>()[p.first_row + i / p.num_heads];
    s.num_visible[i] = std::clamp(position + 1 - first_key, 0, num_keys);
  }
  kernels_.scores({s.q.data(), num_queries, s.keys.data(), num_keys, width_, s.scores.data()});
  kernels_.softmax({s.scores.data(), num_queries, s.num_visible.data(), num_keys, softmax_scale_, s.max.data(),
                    s.sum.data(), s.rescale.data(), s.weights.data()});
  kernels_.values({s.weights.data(), num_queries, s.keys.data(), num_keys, latent_, s.rescale.data(), s.out.data(),
                   latent_, s.interleaved.data()});
}

void Attention::write(const Piece& p, const AttentionRows& rows, const Scratch& s) {
  for (int i = 0; i < p.num_rows * p.num_heads; ++i) {
    const int64_t row = p.first_row + i / p.num_heads, head = p.first_head + i % p.num_heads;
    const float factor = s.sum[i] > 0.0f ? 1.0f / s.sum[i] : s.sum[i];  // a row that sees no key gives 0
    kernels_.scale_to_bf16(&s.out[static_cast<size_t>(i) * latent_], factor, latent_,
                           rows.out + (row * heads_ + head) * rows.ldo);
  }
}

}  // namespace manta::backend::cpu
