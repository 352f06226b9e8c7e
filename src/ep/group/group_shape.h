// What all ranks of a group must agree on, and the sizes that follow from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "ep/expert_transport.h"

namespace manta::ep {

struct GroupShape {
  MoeShape moe;
  ExpertLayout layout = ExpertLayout::kContiguous;
  int size = 1;            // ranks
  int max_num_tokens = 0;  // rows of one rank in a round, T
  int num_microbatches = 1;

  size_t row_bytes() const { return static_cast<size_t>(moe.hidden_size) * dtype_bytes(moe.wire_dtype); }
  size_t pairs() const { return static_cast<size_t>(max_num_tokens) * moe.num_experts_per_tok; }  // (token, k)
  int first_expert(int rank) const { return rank * moe.num_local_experts; }
  int rank_of(int physical) const { return physical / moe.num_local_experts; }
  // Rows that all ranks together can have for one expert, and for one rank.
  int64_t max_rows_per_expert() const { return int64_t{size} * max_num_tokens; }
  int64_t capacity() const;
};

// kInvalidArgument with the number that is wrong.
Status check(const GroupShape& shape);
// "" when equal, else the first number that differs: "hidden_size 7168 there, 4096 here".
std::string difference(const GroupShape& here, const GroupShape& there);

}  // namespace manta::ep
