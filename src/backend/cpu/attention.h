// Attention over tiles of kKeyTile keys, cut by absolute position and taken in ascending order, with an online softmax:
// what a row gets does not depend on how its sequence was chunked, which rows share the call, or on threads.
//
// Absorbed (the default): the keys are the paged latent rows themselves, shared by all heads, and so are the values.
// Unabsorbed (unabsorbed.h): every head has keys and values of its own.
//
// A piece of work is a block of query rows of one request times a group of heads that share keys; all of them use a
// tile while it is in the cache. Masked keys of a block weigh exactly 0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/host/thread_team.h"

namespace manta::backend::cpu {

// Where keys and values are.
class KeySource {
 public:
  virtual ~KeySource() = default;
  virtual bool heads_share_keys() const = 0;
  // Pointers to the keys and values of positions first, first + 1, ...; the position `last` repeats once reached.
  virtual void locate(int request, int head, int first, int last, std::span<const uint16_t*> keys,
                      std::span<const uint16_t*> values) const = 0;
};

// The latent rows of a layer's cache, as both.
class PagedLatents final : public KeySource {
 public:
  PagedLatents(const StepView& view, const KvLayer& cache) : view_(view), cache_(cache) {}
  bool heads_share_keys() const override { return true; }
  void locate(int request, int head, int first, int last, std::span<const uint16_t*> keys,
              std::span<const uint16_t*> values) const override;
  const uint16_t* row(int request, int position) const;

 private:
  const StepView& view_;
  const KvLayer& cache_;
};

// Rows [first, first + count) of the step, all of one request.
struct RowRange {
  int request = 0;
  int first = 0;
  int count = 0;
};

struct AttentionJob {
  std::span<const RowRange> ranges;
  const KeySource* source = nullptr;
  int first_head = 0;
  int num_heads = 0;
  const uint16_t* q = nullptr;  // bf16 query of (row, head) at row * q_row + head * key width
  int64_t q_row = 0;
  uint16_t* out = nullptr;  // bf16 sum of (row, head) at row * out_row + head * out_head
  int64_t out_row = 0;
  int64_t out_head = 0;  // where larger than the value width, the value behind the sum becomes 0
};

class Attention {
 public:
  Attention(const Kernels& kernels, host::ThreadTeam& team, const ModelShape& shape, const Limits& limits,
            int key_width, int value_width);

  void attend(const StepView& view, const AttentionJob& job);
  size_t scratch_bytes() const;

 private:
  struct Piece {
    RowRange rows;
    int first_head = 0;
    int num_heads = 0;
    int num_keys = 0;  // that the last row sees
  };
  struct Scratch {
    std::vector<const uint16_t*> q, keys, values;
    std::vector<int32_t> num_visible;
    std::vector<float> scores, max, sum, rescale, out;
    std::vector<uint16_t> weights, interleaved;
  };

  int64_t plan(const StepView& view, const AttentionJob& job);  // fills pieces_, returns an estimate in ns
  void run_piece(const Piece& piece, const StepView& view, const AttentionJob& job, Scratch& s);
  void run_tile(const Piece& piece, const StepView& view, const KeySource& source, int first_key, Scratch& s);
  void write(const Piece& piece, const AttentionJob& job, const Scratch& s);

  const Kernels& kernels_;
  host::ThreadTeam& team_;
  int key_width_;
  int value_width_;
  float softmax_scale_;
  std::vector<Piece> pieces_;     // capacity for any step
  std::vector<Scratch> scratch_;  // by thread
};

}  // namespace manta::backend::cpu
