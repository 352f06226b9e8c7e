#include "ep/group/row_assembly.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace manta::ep {

namespace {
constexpr size_t kBytesPerPiece = 64 << 10;
}

RowAssembly::RowAssembly(const GroupShape& shape, int rank)
    : shape_(shape),
      first_(shape.first_expert(rank)),
      counts_(shape.moe.num_local_experts),
      offsets_(shape.moe.num_local_experts + 1),
      next_(shape.moe.num_local_experts) {}

void RowAssembly::clear() {
  copies_.clear();
  std::fill(counts_.begin(), counts_.end(), 0);
  std::fill(offsets_.begin(), offsets_.end(), 0);
}

int32_t RowAssembly::max_count() const {
  return counts_.empty() ? 0 : *std::max_element(counts_.begin(), counts_.end());
}

Status RowAssembly::assign(std::span<const RowSource> sources) {
  clear();
  const int num_local = shape_.moe.num_local_experts, top_k = shape_.moe.num_experts_per_tok;
  const auto local = [&](int32_t id) { return static_cast<uint32_t>(id - first_) < static_cast<uint32_t>(num_local); };
  for (const RowSource& s : sources) {
    for (int64_t i = 0; i < int64_t{s.num_tokens} * top_k; ++i) {
      if (local(s.topk_id[i])) ++counts_[s.topk_id[i] - first_];
    }
  }
  for (int e = 0; e < num_local; ++e) offsets_[e + 1] = offsets_[e] + counts_[e];
  if (offsets_[num_local] > shape_.capacity() || max_count() > shape_.max_rows_per_expert()) {
    clear();
    return error(ErrorCode::kInternal, "a token was routed to one expert twice");
  }
  for (int e = 0; e < num_local; ++e) {
    next_[e] = shape_.layout == ExpertLayout::kContiguous ? offsets_[e]
                                                          : static_cast<int32_t>(e * shape_.max_rows_per_expert());
  }
  const size_t row_bytes = shape_.row_bytes();
  for (const RowSource& s : sources) {
    for (int64_t i = 0; i < int64_t{s.num_tokens} * top_k; ++i) {
      if (!local(s.topk_id[i])) continue;
      s.row_of[i] = next_[s.topk_id[i] - first_]++;
      copies_.push_back({s.rows + i / top_k * row_bytes, s.row_of[i]});
    }
  }
  return {};
}

void RowAssembly::copy(Lane& lane, char* batch) const {
  const size_t row_bytes = shape_.row_bytes();
  const auto grain = static_cast<int64_t>(std::max<size_t>(1, kBytesPerPiece / row_bytes));
  lane.parallel_for(num_rows(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(batch + copies_[i].row * row_bytes, copies_[i].from, row_bytes);
  });
}

}  // namespace manta::ep
