// Turns a step's slices into the views that stages see: microbatches are cut, rows laid out, metadata written to fixed
// addresses. plan() knows everything but the tokens and positions of decode rows; gather() fills those in.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/host/host_memory.h"
#include "backend/host/slot_table.h"

namespace manta::backend::host {

// The rows of one slice inside one microbatch. A prefill slice may be cut by a microbatch; a decode slice never is,
// because its rows are verified together.
struct Piece {
  int slice = 0;  // of StepInputs::slices
  SlotId slot = -1;
  int first_row = 0;  // in the microbatch
  int num_rows = 0;
  int first_position = -1;  // -1: decode
  int max_seq_len = 0;
  bool samples = false;   // the slice's last rows are here and become tokens
  int sample_index = -1;  // of SampleView
  bool prompt_logprobs = false;
  int first_logit_row = 0;
  int num_logit_rows = 0;
};

class StepBuilder {
 public:
  static Result<StepBuilder> make(const ModelShape& shape, const Limits& limits);

  // What SlotTable::check() does not see: row counts, padding, and whether the microbatches can be cut.
  Status check(const StepInputs& inputs) const;
  // After check(), and after SlotTable::apply().
  void build(const StepInputs& inputs, const SlotTable& slots, std::vector<StepView>& microbatches);
  // Tokens and positions of decode rows, slot_mapping of every row.
  void gather(const StepView& view, const SlotTable& slots);

  std::span<const Piece> pieces(int microbatch) const { return buffers_[microbatch].pieces; }
  size_t num_bytes() const { return memory_.num_bytes(); }

 private:
  struct Buffers {
    std::vector<Piece> pieces;
    StepView full;  // every tensor at full size
  };

  StepBuilder(const ModelShape& shape, const Limits& limits) : vocab_size_(shape.vocab_size), limits_(limits) {}
  Result<Buffers> allocate();
  Result<std::vector<int>> cut(const StepInputs& inputs) const;
  static void collect_pieces(const StepInputs& inputs, int begin, int end, std::vector<Piece>& pieces);
  void fill_rows(const SlotTable& slots, const Buffers& buffers, StepView& view) const;
  void fill_samples(const StepInputs& inputs, Buffers& buffers, StepView& view) const;

  int vocab_size_;
  Limits limits_;
  HostMemory memory_;
  std::vector<Buffers> buffers_;  // by microbatch
};

}  // namespace manta::backend::host
