// Which rows a rank's experts get, and in which order: by expert, within it by the rank, token and k they come from.
// Every rank's rows land where these numbers say, so a batch does not depend on who arrived first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/lane.h"
#include "base/result.h"
#include "ep/group/group_shape.h"

namespace manta::ep {

// One rank's tokens of this round, as this rank sees them.
struct RowSource {
  int num_tokens = 0;
  const int32_t* topk_id = nullptr;  // [num_tokens, top_k] physical ids of all ranks, or -1
  const char* rows = nullptr;        // [num_tokens, D]
  int32_t* row_of = nullptr;  // [num_tokens, top_k] out: row of the batch, for the experts here; others untouched
};

class RowAssembly {
 public:
  RowAssembly() = default;
  RowAssembly(const GroupShape& shape, int rank);

  // Numbers the rows. kInternal when a token names an expert twice and the rows do not fit; nothing is assigned then.
  Status assign(std::span<const RowSource> sources);
  // Copies them into batch[capacity, D].
  void copy(Lane& lane, char* batch) const;

  int64_t num_rows() const { return static_cast<int64_t>(copies_.size()); }
  int32_t max_count() const;
  std::vector<int32_t>& offsets() { return offsets_; }  // [num_local + 1], contiguous
  std::vector<int32_t>& counts() { return counts_; }    // [num_local]
  void clear();

 private:
  struct Copy {
    const char* from;
    int32_t row;
  };
  GroupShape shape_;
  int first_ = 0;  // physical id of local expert 0
  std::vector<int32_t> counts_, offsets_, next_;
  std::vector<Copy> copies_;
};

}  // namespace manta::ep
