// Attention of the cpu backend on every instruction set this machine has: right against double precision, and the same
// bits for a row however its sequence is chunked, whatever shares the step, and on any number of threads.
#include "backend/cpu/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "backend/host/float_formats.h"

namespace manta::backend::cpu {
namespace {

using host::from_bf16;
using host::to_bf16;

struct Slice {
  int sequence = 0;
  int first_position = 0;
  int num_rows = 0;
};

// Sequences of random cached latents and queries, in blocks dealt out in reverse order; all other cache rows are NaN.
class World {
 public:
  World(const ModelShape& shape, int block_size, std::vector<int> lengths) : shape_(shape), lengths_(lengths) {
    max_blocks_ = (*std::max_element(lengths.begin(), lengths.end()) + block_size - 1) / block_size;
    const int num_blocks = max_blocks_ * static_cast<int>(lengths.size());
    cache_.assign(static_cast<size_t>(num_blocks) * block_size * width(), 0x7fc0);
    block_tables_.resize(num_blocks);
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    int next = num_blocks;
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int i = 0; i < max_blocks_; ++i) block_tables_[s * max_blocks_ + i] = --next;
      queries_.emplace_back();
      for (int i = 0; i < lengths[s] * shape.num_attention_heads * width(); ++i) {
        queries_.back().push_back(to_bf16(normal(rng)));
      }
      for (int position = 0; position < lengths[s]; ++position) {
        for (int i = 0; i < width(); ++i)
          cache_row(static_cast<int>(s), position, block_size)[i] = to_bf16(normal(rng));
      }
    }
    layer_.rows = make_tensor(cache_.data(), DType::kBF16, {num_blocks, block_size, width()});
  }

  int width() const { return shape_.kv_lora_rank + shape_.qk_rope_head_dim; }
  int64_t ldo() const { return shape_.kv_lora_rank + shape_.kv_lora_rank % 2; }
  int64_t out_size() const { return shape_.num_attention_heads * ldo(); }

  // The step's output rows, in order; padding rows behind them.
  std::vector<uint16_t> run(const Kernels& kernels, int num_threads, const std::vector<Slice>& slices,
                            int padding = 0) {
    std::vector<int32_t> positions, cu_rows{0}, slots;
    std::vector<uint16_t> q;
    const int64_t per_row = int64_t{shape_.num_attention_heads} * width();
    for (const Slice& s : slices) {
      slots.push_back(s.sequence);
      for (int i = 0; i < s.num_rows; ++i) positions.push_back(s.first_position + i);
      const uint16_t* from = queries_[s.sequence].data() + s.first_position * per_row;
      q.insert(q.end(), from, from + s.num_rows * per_row);
      cu_rows.push_back(static_cast<int32_t>(positions.size()));
    }
    StepView view;
    view.num_reqs = static_cast<int>(slices.size());
    view.num_tokens = static_cast<int>(positions.size()) + padding;
    positions.resize(view.num_tokens, -1);
    q.resize(view.num_tokens * per_row, 0x7fc0);
    view.positions = make_tensor(positions.data(), DType::kI32, {view.num_tokens});
    view.cu_rows = make_tensor(cu_rows.data(), DType::kI32, {view.num_reqs + 1});
    view.slots = make_tensor(slots.data(), DType::kI32, {view.num_reqs});
    view.block_tables =
        make_tensor(block_tables_.data(), DType::kI32, {static_cast<int64_t>(lengths_.size()), max_blocks_});
    host::ThreadTeam team(num_threads);
    Limits limits;
    limits.max_num_tokens = view.num_tokens;
    Attention attention(kernels, team, shape_, limits, width(), shape_.kv_lora_rank);
    std::vector<RowRange> ranges;
    for (int r = 0; r < view.num_reqs; ++r) ranges.push_back({r, cu_rows[r], cu_rows[r + 1] - cu_rows[r]});
    const PagedLatents source(view, layer_);
    std::vector<uint16_t> out(view.num_tokens * out_size(), 0x7fc0);
    attention.attend(view, {.ranges = ranges,
                            .source = &source,
                            .num_heads = shape_.num_attention_heads,
                            .q = q.data(),
                            .q_row = per_row,
                            .out = out.data(),
                            .out_row = out_size(),
                            .out_head = ldo()});
    return out;
  }

  double expected(int sequence, int position, int head, int column, int block_size) {
    const uint16_t* q =
        &queries_[sequence][(static_cast<size_t>(position) * shape_.num_attention_heads + head) * width()];
    std::vector<double> scores;
    for (int key = 0; key <= position; ++key) {
      double score = 0;
      for (int i = 0; i < width(); ++i) score += from_bf16(q[i]) * from_bf16(cache_row(sequence, key, block_size)[i]);
      scores.push_back(score * shape_.softmax_scale);
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0, value = 0;
    for (int key = 0; key <= position; ++key) {
      const double weight = std::exp(scores[key] - max);
      sum += weight;
      value += weight * from_bf16(cache_row(sequence, key, block_size)[column]);
    }
    return value / sum;
  }

 private:
  uint16_t* cache_row(int sequence, int position, int block_size) {
    const int64_t block = block_tables_[sequence * max_blocks_ + position / block_size];
    return &cache_[(block * block_size + position % block_size) * width()];
  }

  ModelShape shape_;
  std::vector<int> lengths_;
  int max_blocks_;
  std::vector<uint16_t> cache_;
  std::vector<int32_t> block_tables_;
  std::vector<std::vector<uint16_t>> queries_;
  KvLayer layer_;
};

ModelShape shape_of(int heads, int latent, int rope) {
  ModelShape s;
  s.num_attention_heads = heads;
  s.kv_lora_rank = latent;
  s.qk_rope_head_dim = rope;
  s.softmax_scale = 1.0f / std::sqrt(static_cast<float>(latent));
  return s;
}

class CpuAttention : public testing::TestWithParam<const Kernels*> {};

TEST_P(CpuAttention, MatchesDoublePrecision) {
  const struct {
    int heads, latent, rope, block_size;
  } cases[] = {{1, 32, 2, 1}, {3, 33, 6, 7}, {8, 64, 16, 16}, {5, 97, 10, 64}, {40, 16, 4, 5}, {2, 512, 64, 64}};
  for (const auto& c : cases) {
    const ModelShape shape = shape_of(c.heads, c.latent, c.rope);
    for (const int length : {1, 2, 63, 64, 65, 130}) {
      World world(shape, c.block_size, {length});
      const auto out = world.run(*GetParam(), 2, {{0, 0, length}});
      for (int position = 0; position < length; position += 1 + length / 3) {
        for (int head = 0; head < c.heads; ++head) {
          for (int column = 0; column < c.latent; column += 1 + c.latent / 17) {
            const double expected = world.expected(0, position, head, column, c.block_size);
            const float got = from_bf16(out[position * world.out_size() + head * world.ldo() + column]);
            ASSERT_NEAR(got, expected, 0.01 + std::abs(expected) / 200)
                << "heads " << c.heads << " latent " << c.latent << " position " << position << " head " << head
                << " column " << column;
          }
          if (c.latent % 2 != 0) {
            EXPECT_EQ(out[position * world.out_size() + head * world.ldo() + c.latent], 0);
          }
        }
      }
    }
  }
}

TEST_P(CpuAttention, ChunksNeighboursAndThreadsDoNotShow) {
  const ModelShape shapes[] = {shape_of(8, 64, 16), shape_of(3, 33, 6), shape_of(48, 40, 8)};
  for (const ModelShape& shape : shapes) {
    const std::vector<int> lengths{150, 70, 1, 199};
    World world(shape, 16, lengths);
    const int64_t size = world.out_size();
    std::vector<std::vector<uint16_t>> whole;  // by sequence: a prefill of its own, one thread
    for (int s = 0; s < 4; ++s) whole.push_back(world.run(*GetParam(), 1, {{s, 0, lengths[s]}}));

    const std::vector<Slice> mixed{{3, 198, 1}, {0, 37, 100}, {2, 0, 1}, {1, 67, 3}, {3, 64, 65}};
    const auto out = world.run(*GetParam(), 2, mixed, /*padding=*/3);
    int64_t row = 0;
    for (const Slice& s : mixed) {
      EXPECT_EQ(0, std::memcmp(&out[row * size], &whole[s.sequence][s.first_position * size], s.num_rows * size * 2))
          << "sequence " << s.sequence << " from " << s.first_position;
      row += s.num_rows;
    }
    for (size_t i = row * size; i < out.size(); ++i) ASSERT_EQ(out[i], 0x7fc0) << "no row's output is here";
    for (const int position : {0, 63, 64, 149}) {  // a decode step's row
      const auto alone = world.run(*GetParam(), 2, {{0, position, 1}});
      EXPECT_EQ(0, std::memcmp(alone.data(), &whole[0][position * size], size * 2)) << "position " << position;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, CpuAttention, testing::ValuesIn([] {
                           const TargetList list = available_kernels();
                           return std::vector<const Kernels*>(list.tables, list.tables + list.count);
                         }()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace manta::backend::cpu
