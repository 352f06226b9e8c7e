// The slots' state on the device, and what the host adds to it: admitted tokens, new blocks, sampling parameters.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/cuda/upload.h"
#include "backend/host/slot_table.h"

namespace manta::backend::cuda {

class DeviceSlots {
 public:
  Status init(const ModelShape& shape, const Limits& limits, int max_blocks_per_seq);
  static size_t num_bytes(const ModelShape& shape, const Limits& limits, int max_blocks_per_seq);

  // Everything of a step that changes slots; after table.apply(inputs). Work is ordered in `stream`.
  Status apply(const StepInputs& inputs, const host::SlotTable& table, Upload& upload, cudaStream_t stream);

  const SlotArrays& arrays() const { return arrays_; }
  const Tensor& block_tables() const { return block_tables_; }  // [max_num_seqs, max_blocks_per_seq] i32

 private:
  Status admit(const SlotAdmission& admission, Upload& upload, cudaStream_t stream);
  Result<const int32_t*> put_lists(SlotId slot, const std::vector<int32_t>& lists, Upload& upload, cudaStream_t stream);
  Status release(SlotId slot, cudaStream_t stream);
  void put_blocks(SlotId slot, const host::SlotTable& table, Upload& upload);

  int vocab_size_ = 0;
  DeviceMemory memory_;
  SlotArrays arrays_;
  Tensor block_tables_;
  int32_t* lists_ = nullptr;       // [max_num_seqs, kInlineWords]
  std::vector<void*> long_lists_;  // by slot: lists that do not fit inline
  std::vector<int> num_blocks_;    // by slot: of its block table, on the device
};

}  // namespace manta::backend::cuda
