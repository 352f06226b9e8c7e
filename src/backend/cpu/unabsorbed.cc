#include "backend/cpu/unabsorbed.h"

#include <algorithm>
#include <cstring>

namespace manta::backend::cpu {
namespace {

constexpr int kHeads = 8;       // whose keys and values exist at a time
constexpr int kMaxKeys = 8192;  // beyond, the absorbed form serves: its scratch does not grow with the context

}  // namespace

// Dense keys and values of a group of heads.
class Unabsorbed::HeadKeys final : public KeySource {
 public:
  HeadKeys(const Tensor& keys, const Tensor& values, int first_head)
      : keys_(keys), values_(values), first_head_(first_head) {}
  bool heads_share_keys() const override { return false; }
  void locate(int, int head, int first, int last, std::span<const uint16_t*> keys,
              std::span<const uint16_t*> values) const override {
    for (size_t j = 0; j < keys.size(); ++j) {
      const int64_t position = std::min(first + static_cast<int>(j), last);
      keys[j] = at(keys_, head - first_head_, position);
      values[j] = at(values_, head - first_head_, position);
    }
  }
  static uint16_t* at(const Tensor& t, int64_t head, int64_t position) {
    return t.as<uint16_t>() + head * t.stride[0] + position * t.stride[1];
  }

 private:
  const Tensor& keys_;
  const Tensor& values_;
  int first_head_;
};

Unabsorbed::Unabsorbed(const Kernels& kernels, host::ThreadTeam& team, const ModelShape& s, const Limits& limits)
    : team_(team),
      shape_(s),
      max_keys_(std::min(limits.max_model_len, kMaxKeys)),
      attention_(kernels, team, s, limits, s.qk_nope_head_dim + s.qk_rope_head_dim, s.v_head_dim) {
  problems_.reserve(static_cast<size_t>(2 * kHeads) * max_keys_);  // blocks may be of one token
}

Result<std::unique_ptr<Unabsorbed>> Unabsorbed::make(const Kernels& kernels, host::ThreadTeam& team,
                                                     const ModelShape& s, const Limits& limits) {
  auto made = std::unique_ptr<Unabsorbed>(new Unabsorbed(kernels, team, s, limits));
  const int64_t heads = std::min(kHeads, s.num_attention_heads);
  MANTA_ASSIGN(made->keys_, made->memory_.allocate("unabsorbed keys", DType::kBF16,
                                                   {heads, made->max_keys_, s.qk_nope_head_dim + s.qk_rope_head_dim}));
  MANTA_ASSIGN(made->values_,
               made->memory_.allocate("unabsorbed values", DType::kBF16, {heads, made->max_keys_, s.v_head_dim}));
  return made;
}

bool Unabsorbed::pays(int num_rows, int num_keys) const {
  if (num_keys > max_keys_) return false;
  const int64_t c = shape_.kv_lora_rank, up = shape_.qk_nope_head_dim + shape_.v_head_dim;
  // Products of a head: what a (row, key) saves, what absorbing a row would cost, what a key's expansion costs.
  const int64_t saved_per_pair = 2 * c - up;
  const int64_t pairs = static_cast<int64_t>(num_rows) * (num_keys - num_rows / 2);
  return pairs * saved_per_pair + num_rows * c * up > num_keys * c * up;
}

void Unabsorbed::attend(const StepView& view, const RowRange& rows, const KvLayer& cache, const KvUpWeight& weights,
                        const uint16_t* q, uint16_t* out, int64_t out_row, Gemm& gemm) {
  const PagedLatents latents(view, cache);
  const int32_t* positions = view.positions.as<int32_t>() + rows.first;
  const int num_keys = 1 + *std::max_element(positions, positions + rows.count);
  const int heads = shape_.num_attention_heads;
  for (int first = 0; first < heads; first += kHeads) {
    const int count = std::min(kHeads, heads - first);
    make_keys(latents, rows.request, num_keys, static_cast<int>(cache.rows.shape[1]), first, count, weights, gemm);
    const HeadKeys source(keys_, values_, first);
    attention_.attend(view, {.ranges = {&rows, 1},
                             .source = &source,
                             .first_head = first,
                             .num_heads = count,
                             .q = q,
                             .q_row = int64_t{heads} * (shape_.qk_nope_head_dim + shape_.qk_rope_head_dim),
                             .out = out,
                             .out_row = out_row,
                             .out_head = shape_.v_head_dim});
  }
}

// A cache block's latent rows lie at one stride: each block is a matrix product of its own for every head.
void Unabsorbed::make_keys(const PagedLatents& latents, int request, int num_keys, int block_size, int first_head,
                           int num_heads, const KvUpWeight& weights, Gemm& gemm) {
  const int64_t width = shape_.kv_lora_rank + shape_.qk_rope_head_dim;
  problems_.clear();
  for (int position = 0; position < num_keys; position += block_size) {
    for (int head = 0; head < num_heads; ++head) {
      GemmProblem p;
      p.a = latents.row(request, position);
      p.lda = width;
      p.rows = std::min(block_size, num_keys - position);
      p.weight = &weights.key_rows[first_head + head];
      p.out_bf16 = HeadKeys::at(keys_, head, position);
      p.ldo = keys_.stride[1];
      problems_.push_back(p);
      p.weight = &weights.value_up[first_head + head];
      p.out_bf16 = HeadKeys::at(values_, head, position);
      p.ldo = values_.stride[1];
      problems_.push_back(p);
    }
  }
  gemm.run(problems_);
  team_.parallel_for(num_keys, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t position = begin; position < end; ++position) {
      const uint16_t* rotated = latents.row(request, static_cast<int>(position)) + shape_.kv_lora_rank;
      for (int head = 0; head < num_heads; ++head) {
        std::memcpy(HeadKeys::at(keys_, head, position) + shape_.qk_nope_head_dim, rotated,
                    sizeof(uint16_t) * shape_.qk_rope_head_dim);
      }
    }
  });
}

}  // namespace manta::backend::cpu
