// Which rows of a microbatch attend over expanded keys and values, and in which passes: what a pass expands fits the
// memory there is for it, and a context that does not is cut, its parts brought together by their log-sum-exp. Host
// code.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/host/step_builder.h"

namespace manta::backend::cuda {

constexpr int kPrefillTile = 128;  // of queries, and of keys

// A run of a sequence's positions -> rows of a pass, from a multiple of kPrefillTile on.
struct KvSegment {
  int32_t slot = 0;
  int32_t position = 0;
  int32_t num_rows = 0;
  int32_t row = 0;
};

// Up to kPrefillTile query rows of one sequence and the part of its context that a pass holds, for every head.
struct PrefillItem {
  int32_t q_row = 0;
  int32_t num_rows = 0;
  int32_t kv_row = 0;      // where the part begins
  int32_t kv_rows = 0;     // its length
  int32_t first_seen = 0;  // row i sees the first min(kv_rows, first_seen + i) of it; < 1: nothing
  int32_t num_tiles = 0;   // that the last row sees
  int32_t has_earlier = 0, has_later = 0;
};

struct PrefillPass {
  int first_segment = 0, num_segments = 0;
  int first_item = 0, num_items = 0;
  int num_rows = 0;
};

struct RowRun {
  int begin = 0, end = 0;
};

struct PrefillPlan {
  std::vector<KvSegment> segments;
  std::vector<PrefillItem> items;  // of each pass the longest first
  std::vector<PrefillPass> passes;
  std::vector<RowRun> expanded, absorbed;  // all rows, padding too, are in one of the two
  std::vector<int32_t> is_expanded;        // by piece
  int num_absorbed = 0;                    // rows
};

// max_rows: of a pass, a multiple of kPrefillTile; 0: everything stays absorbed.
PrefillPlan plan_prefill(std::span<const host::Piece> pieces, int num_rows, int max_rows);

// Whether a slice is cheaper so: by the products of both ways.
bool expands(int num_rows, int first_position);

// The most that plans of so many rows have, for their buffers.
struct PrefillBounds {
  int64_t segments = 0, items = 0;
};
PrefillBounds prefill_bounds(int num_rows, int max_seq_len, int max_rows);

}  // namespace manta::backend::cuda
