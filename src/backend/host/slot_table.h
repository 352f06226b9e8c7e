// What a CPU backend remembers of the requests that hold a slot. On a GPU this state lives in device memory and the
// host never looks; here the same rules apply, so that a plan made before the last step was collected means the same.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/host/host_memory.h"

namespace manta::backend::host {

struct Slot {
  bool occupied = false;
  // All known tokens: the prompt, then what was generated. The last one's cache row is written by the next step.
  std::vector<TokenId> tokens;
  int num_prompt_tokens = 0;
  std::vector<TokenId> drafts;  // at most k guesses of what follows tokens
  int num_blocks = 0;           // valid entries of the slot's block table
  sample::SamplingParams sampling;

  int slot_len() const { return static_cast<int>(tokens.size()); }
};

class SlotTable {
 public:
  static Result<SlotTable> make(const ModelShape& shape, const Limits& limits, const kv::CacheGeometry& geometry);

  // Everything that can be wrong with a step's slots, blocks and tokens. Changes nothing, so a refused step leaves the
  // table as it was.
  Status check(const StepInputs& inputs) const;
  // Applies released, admitted and new blocks, and reserves what the step may append. Only after check() passed.
  void apply(const StepInputs& inputs);

  Slot& slot(SlotId id) { return slots_[id]; }
  const Slot& slot(SlotId id) const { return slots_[id]; }
  const Tensor& block_tables() const { return block_tables_; }  // [max_num_seqs, max_blocks_per_seq] i32

  // Where the row of `position` stands in every layer's cache; -1 when the table does not reach that far.
  int64_t cache_row(SlotId id, int position) const;

 private:
  // A slot as the step will find it once released and admitted are applied.
  struct Expected {
    bool occupied = false;
    bool has_slice = false;
    int num_tokens = 0;
    int num_blocks = 0;
  };

  SlotTable(int vocab_size, const Limits& limits, const kv::CacheGeometry& geometry);
  Status check_slot_id(const char* what, SlotId id) const;
  Status check_blocks(SlotId id, int num_blocks_before, std::span<const BlockId> blocks) const;
  Status check_admission(const SlotAdmission& admission, const Expected& before) const;
  Status check_slice(const RowSlice& slice, const Expected& slot) const;
  Status check_prefill(const RowSlice& slice, const Expected& slot) const;
  Status check_decode(const RowSlice& slice, const Expected& slot) const;
  Status check_bitmask(const RowSlice& slice) const;
  void append_blocks(SlotId id, std::span<const BlockId> blocks);

  int vocab_size_;
  Limits limits_;
  int num_cache_blocks_;
  int block_size_;
  int max_blocks_per_seq_;
  std::vector<Slot> slots_;
  HostMemory memory_;
  Tensor block_tables_;
};

}  // namespace manta::backend::host
