#include "backend/cuda/attention/prefill_plan.h"

#include <algorithm>

namespace manta::backend::cuda {
namespace {

constexpr int kLeastRows = 64;  // below, a tile of queries is mostly empty

int64_t whole_tiles(int64_t rows) {
  return (rows + kPrefillTile - 1) / kPrefillTile * kPrefillTile;
}

void add_run(std::vector<RowRun>& runs, int begin, int end) {
  if (begin == end) return;
  if (!runs.empty() && runs.back().end == begin) {
    runs.back().end = end;
  } else {
    runs.push_back({begin, end});
  }
}

// The query tiles of a piece over positions [begin, end) of its context, which stand at kv_row.
void add_items(const host::Piece& p, int begin, int end, int kv_row, std::vector<PrefillItem>& items) {
  for (int first = 0; first < p.num_rows; first += kPrefillTile) {
    PrefillItem item;
    item.q_row = p.first_row + first;
    item.num_rows = std::min(kPrefillTile, p.num_rows - first);
    item.kv_row = kv_row;
    item.kv_rows = end - begin;
    item.first_seen = p.first_position + first + 1 - begin;
    const int seen_by_last = std::min(item.kv_rows, item.first_seen + item.num_rows - 1);
    if (seen_by_last < 1) continue;
    item.num_tiles = (seen_by_last + kPrefillTile - 1) / kPrefillTile;
    item.has_earlier = begin > 0;
    item.has_later = p.first_position + first + item.num_rows > end;
    items.push_back(item);
  }
}

void close_pass(PrefillPlan& plan) {
  PrefillPass& pass = plan.passes.back();
  pass.num_segments = static_cast<int>(plan.segments.size()) - pass.first_segment;
  pass.num_items = static_cast<int>(plan.items.size()) - pass.first_item;
  std::stable_sort(plan.items.begin() + pass.first_item, plan.items.end(),
                   [](const PrefillItem& a, const PrefillItem& b) { return a.num_tiles > b.num_tiles; });
}

void open_pass(PrefillPlan& plan) {
  if (!plan.passes.empty()) close_pass(plan);
  plan.passes.push_back(
      {.first_segment = static_cast<int>(plan.segments.size()), .first_item = static_cast<int>(plan.items.size())});
}

void expand_piece(const host::Piece& p, int max_rows, PrefillPlan& plan) {
  const int context = p.first_position + p.num_rows;
  for (int begin = 0; begin < context;) {
    if (plan.passes.empty() || plan.passes.back().num_rows == max_rows) open_pass(plan);
    PrefillPass& pass = plan.passes.back();
    const int end = std::min(context, begin + max_rows - pass.num_rows);
    plan.segments.push_back({p.slot, begin, end - begin, pass.num_rows});
    add_items(p, begin, end, pass.num_rows, plan.items);
    pass.num_rows += static_cast<int>(whole_tiles(end - begin));
    begin = end;
  }
}

}  // namespace

bool expands(int num_rows, int first_position) {
  if (num_rows < kLeastRows) return false;
  const double seen = first_position + num_rows / 2.0;
  const double up = 512.0 * (128 + 128);  // a latent to a key and a value, or a query and a result the other way
  const double absorbed = num_rows * (seen * (576 + 512) + up);
  const double expanded = static_cast<double>(whole_tiles(num_rows)) * seen * (192 + 128) +
                          static_cast<double>(whole_tiles(first_position + num_rows)) * up;
  return expanded < absorbed;
}

PrefillPlan plan_prefill(std::span<const host::Piece> pieces, int num_rows, int max_rows) {
  PrefillPlan plan;
  int row = 0;
  for (const host::Piece& p : pieces) {
    const bool expanded = max_rows > 0 && p.first_position >= 0 && expands(p.num_rows, p.first_position);
    plan.is_expanded.push_back(expanded ? 1 : 0);
    add_run(expanded ? plan.expanded : plan.absorbed, row, row + p.num_rows);
    row += p.num_rows;
    if (expanded) expand_piece(p, max_rows, plan);
  }
  if (!plan.passes.empty()) close_pass(plan);
  add_run(plan.absorbed, row, num_rows);
  for (const RowRun& run : plan.absorbed) plan.num_absorbed += run.end - run.begin;
  return plan;
}

PrefillBounds prefill_bounds(int num_rows, int max_seq_len, int max_rows) {
  if (max_rows == 0) return {};
  // A piece of the most rows a context has touches this many passes; pieces have at least kLeastRows rows.
  const int64_t passes = (whole_tiles(max_seq_len) + max_rows - 1) / max_rows + 1;
  const int64_t pieces = num_rows / kLeastRows;
  return {pieces * passes, (num_rows / kPrefillTile + pieces) * passes};
}

}  // namespace manta::backend::cuda
