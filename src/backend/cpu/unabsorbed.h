// The unabsorbed form of MLA for long pieces of a prompt: keys and values of every head are made from the latents once,
// and attention then multiplies (nope + rope) + v numbers per key and head in place of 2 C + rope. Not batch-invariant
// (a token's form depends on how many rows its request has in the step), so only with batch_invariant = false.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/packed_weights.h"
#include "backend/host/host_memory.h"

namespace manta::backend::cpu {

class Unabsorbed {
 public:
  static Result<std::unique_ptr<Unabsorbed>> make(const Kernels& kernels, host::ThreadTeam& team,
                                                  const ModelShape& shape, const Limits& limits);

  // Whether making keys and values pays for a request with this many rows, the last of which sees num_keys.
  bool pays(int num_rows, int num_keys) const;

  // q: [T][H * (nope + rope)] bf16, rotated; out: [T][out_row] bf16, v values per head. The weights have key_rows.
  void attend(const StepView& view, const RowRange& rows, const KvLayer& cache, const KvUpWeight& weights,
              const uint16_t* q, uint16_t* out, int64_t out_row, Gemm& gemm);
  size_t scratch_bytes() const { return memory_.num_bytes() + attention_.scratch_bytes(); }

 private:
  class HeadKeys;
  Unabsorbed(const Kernels& kernels, host::ThreadTeam& team, const ModelShape& shape, const Limits& limits);
  void make_keys(const PagedLatents& latents, int request, int num_keys, int block_size, int first_head, int num_heads,
                 const KvUpWeight& weights, Gemm& gemm);

  host::ThreadTeam& team_;
  ModelShape shape_;
  int max_keys_;
  Attention attention_;
  host::HostMemory memory_;
  Tensor keys_;    // [heads of a group, max_keys, nope + rope] bf16
  Tensor values_;  // [heads of a group, max_keys, v] bf16
  std::vector<GemmProblem> problems_;
};

}  // namespace manta::backend::cpu
