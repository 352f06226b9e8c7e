#include "backend/cpu/attention.h"

#include <algorithm>
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

// Heads that a piece takes. Smaller groups only where there would be too few pieces for the threads; no bit depends
// on it.
int head_group(const AttentionJob& job, int num_rows, int num_threads) {
  if (!job.source->heads_share_keys()) return 1;
  int group = std::min(job.num_heads, kMaxHeads);
  while (group / 2 >= kMinHeads && num_rows * ceil_div(job.num_heads, group) < 2 * num_threads) group /= 2;
  return group;
}

}  // namespace

const uint16_t* PagedLatents::row(int request, int position) const {
  const int64_t slot = view_.slots.as<int32_t>()[request];
  const int32_t* blocks = view_.block_tables.as<int32_t>() + slot * view_.block_tables.stride[0];
  const auto block_size = static_cast<int>(cache_.rows.shape[1]);
  const int64_t row = int64_t{blocks[position / block_size]} * block_size + position % block_size;
  return cache_.rows.as<uint16_t>() + row * cache_.rows.shape[2];
}

void PagedLatents::locate(int request, int, int first, int last, std::span<const uint16_t*> keys,
                          std::span<const uint16_t*> values) const {
  for (size_t j = 0; j < keys.size(); ++j) {
    keys[j] = row(request, std::min(first + static_cast<int>(j), last));
    values[j] = keys[j];
  }
}

Attention::Attention(const Kernels& kernels, host::ThreadTeam& team, const ModelShape& s, const Limits& limits,
                     int key_width, int value_width)
    : kernels_(kernels),
      team_(team),
      key_width_(key_width),
      value_width_(value_width),
      softmax_scale_(s.softmax_scale) {
  pieces_.reserve(static_cast<size_t>(limits.max_num_tokens) * ceil_div(s.num_attention_heads, kMinHeads));
  scratch_.resize(team.num_threads());
  for (Scratch& t : scratch_) {
    t.q.resize(kMaxQueries);
    t.keys.resize(kKeyTile + kKeysAhead);
    t.values.resize(t.keys.size());
    t.num_visible.resize(kMaxQueries);
    for (auto* v : {&t.max, &t.sum, &t.rescale}) v->resize(kMaxQueries);
    t.scores.resize(kMaxQueries * kKeyTile);
    t.weights.resize(kMaxQueries * kKeyTile);
    t.interleaved.resize(kKeyTile * 64);
    t.out.resize(static_cast<size_t>(kMaxQueries) * value_width_);
  }
}

size_t Attention::scratch_bytes() const {
  const size_t per_thread =
      kMaxQueries * (kKeyTile * 6 + 6 * sizeof(float) + value_width_ * sizeof(float)) + kKeyTile * (64 * 2 + 16);
  return per_thread * scratch_.size() + pieces_.capacity() * sizeof(Piece);
}

int64_t Attention::plan(const StepView& view, const AttentionJob& job) {
  const int32_t* positions = view.positions.as<int32_t>();
  int num_rows = 0;
  for (const RowRange& range : job.ranges) num_rows += range.count;
  const int group = head_group(job, num_rows, team_.num_threads());
  const int block = std::max(1, kMaxQueries / group);
  pieces_.clear();
  int64_t products = 0;
  for (const RowRange& range : job.ranges) {
    for (int row = 0; row < range.count; row += block) {
      const RowRange rows{range.request, range.first + row, std::min(block, range.count - row)};
      const int num_keys = 1 + *std::max_element(positions + rows.first, positions + rows.first + rows.count);
      for (int head = 0; head < job.num_heads; head += group) {
        pieces_.push_back({rows, job.first_head + head, std::min(group, job.num_heads - head), num_keys});
      }
      products += static_cast<int64_t>(num_keys) * rows.count * job.num_heads * (key_width_ + value_width_);
    }
  }
  return products / 50;  // a core does some 50 to 100 a nanosecond
}

void Attention::attend(const StepView& view, const AttentionJob& job) {
  const int64_t ns = plan(view, job);
  const auto n = static_cast<int64_t>(pieces_.size());
  team_.parallel_for(n, grain_for(n, ns, team_.num_threads()), [&](int64_t begin, int64_t end, int thread) {
    // The last rows of a prompt see the most keys: taken first, they leave small pieces to fill the end with.
    for (int64_t i = begin; i < end; ++i) run_piece(pieces_[n - 1 - i], view, job, scratch_[thread]);
  });
}

void Attention::run_piece(const Piece& p, const StepView& view, const AttentionJob& job, Scratch& s) {
  const int num_queries = p.rows.count * p.num_heads;
  for (int i = 0; i < num_queries; ++i) {
    const int64_t row = p.rows.first + i / p.num_heads, head = p.first_head + i % p.num_heads;
    s.q[i] = job.q + row * job.q_row + head * key_width_;
  }
  std::fill_n(s.max.begin(), num_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(s.sum.begin(), num_queries, 0.0f);
  std::fill_n(s.out.begin(), static_cast<size_t>(num_queries) * value_width_, 0.0f);
  for (int first_key = 0; first_key < p.num_keys; first_key += kKeyTile) run_tile(p, view, *job.source, first_key, s);
  write(p, job, s);
}

void Attention::run_tile(const Piece& p, const StepView& view, const KeySource& source, int first_key, Scratch& s) {
  const int num_queries = p.rows.count * p.num_heads;
  const int num_keys = std::min(kKeyTile, p.num_keys - first_key);
  source.locate(p.rows.request, p.first_head, first_key, p.num_keys - 1, s.keys, s.values);
  for (int i = 0; i < num_queries; ++i) {
    const int position = view.positions.as<int32_t>()[p.rows.first + i / p.num_heads];
    s.num_visible[i] = std::clamp(position + 1 - first_key, 0, num_keys);
  }
  kernels_.scores({s.q.data(), num_queries, s.keys.data(), num_keys, key_width_, s.scores.data()});
  kernels_.softmax({s.scores.data(), num_queries, s.num_visible.data(), num_keys, softmax_scale_, s.max.data(),
                    s.sum.data(), s.rescale.data(), s.weights.data()});
  kernels_.values({s.weights.data(), num_queries, s.values.data(), num_keys, value_width_, s.rescale.data(),
                   s.out.data(), value_width_, s.interleaved.data()});
}

void Attention::write(const Piece& p, const AttentionJob& job, const Scratch& s) {
  for (int i = 0; i < p.rows.count * p.num_heads; ++i) {
    const int64_t row = p.rows.first + i / p.num_heads, head = p.first_head + i % p.num_heads;
    uint16_t* out = job.out + row * job.out_row + head * job.out_head;
    const float factor = s.sum[i] > 0.0f ? 1.0f / s.sum[i] : s.sum[i];  // a row that sees no key gives 0
    kernels_.scale_to_bf16(&s.out[static_cast<size_t>(i) * value_width_], factor, value_width_, out);
    if (job.out_head > value_width_) out[value_width_] = 0;
  }
}

}  // namespace manta::backend::cpu
