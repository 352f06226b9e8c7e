// The cuda backend's plan of prefill attention: every row that is expanded sees every position up to its own once, in
// passes that fit, and what its passes say of earlier and later ones is true. Host code, tested without a GPU.
#include "backend/cuda/attention/prefill_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace manta::backend::cuda {
namespace {

std::vector<host::Piece> pieces_of(
    const std::vector<std::pair<int, int>>& slices) {  // first position (-1: decode), rows
  std::vector<host::Piece> pieces;
  int row = 0;
  for (const auto& [first_position, num_rows] : slices) {
    host::Piece p;
    p.slot = static_cast<SlotId>(pieces.size()) + 3;
    p.first_row = row;
    p.num_rows = num_rows;
    p.first_position = first_position;
    row += num_rows;
    pieces.push_back(p);
  }
  return pieces;
}

// What each row has seen, walking the passes as the kernels do.
struct Walk {
  std::map<int, int> seen;  // row -> positions [0, n)

  void pass(const PrefillPlan& plan, const PrefillPass& pass, const std::vector<host::Piece>& pieces) {
    for (int i = pass.first_item; i < pass.first_item + pass.num_items; ++i) {
      const PrefillItem& item = plan.items[i];
      if (i > pass.first_item) {
        EXPECT_LE(item.num_tiles, plan.items[i - 1].num_tiles);
      }
      const auto piece = std::find_if(pieces.begin(), pieces.end(), [&](const host::Piece& p) {
        return item.q_row >= p.first_row && item.q_row + item.num_rows <= p.first_row + p.num_rows;
      });
      ASSERT_NE(piece, pieces.end()) << "an item of two sequences";
      const auto* first = plan.segments.data() + pass.first_segment;
      const auto* segment =
          std::find_if(first, first + pass.num_segments, [&](const KvSegment& s) { return s.row == item.kv_row; });
      ASSERT_NE(segment, first + pass.num_segments);
      EXPECT_EQ(segment->slot, piece->slot);
      EXPECT_EQ(segment->num_rows, item.kv_rows);
      bool later = false;
      int most = 0;
      for (int r = 0; r < item.num_rows; ++r) {
        const int row = item.q_row + r, position = piece->first_position + row - piece->first_row;
        const int sees = std::min(item.kv_rows, item.first_seen + r);
        if (sees > 0) {
          EXPECT_EQ(seen[row], segment->position) << "row " << row;
          seen[row] += sees;
        }
        most = std::max(most, sees);
        later |= seen[row] <= position;
        EXPECT_LE(seen[row], position + 1);
      }
      EXPECT_EQ(item.num_tiles, (most + kPrefillTile - 1) / kPrefillTile);
      EXPECT_EQ(item.has_earlier != 0, segment->position > 0);
      EXPECT_EQ(item.has_later != 0, later);
    }
  }
};

void expect_right(const std::vector<std::pair<int, int>>& slices, int num_rows, int max_rows) {
  const auto pieces = pieces_of(slices);
  const PrefillPlan plan = plan_prefill(pieces, num_rows, max_rows);
  std::vector<int> kind(num_rows, 0);
  for (const RowRun& run : plan.expanded) std::fill(kind.begin() + run.begin, kind.begin() + run.end, 1);
  for (const RowRun& run : plan.absorbed) {
    for (int r = run.begin; r < run.end; ++r) {
      EXPECT_EQ(kind[r], 0);
      kind[r] = 2;
    }
  }
  EXPECT_EQ(std::count(kind.begin(), kind.end(), 0), 0);
  EXPECT_EQ(std::count(kind.begin(), kind.end(), 2), plan.num_absorbed);
  Walk walk;
  int longest = 0;
  for (const PrefillPass& pass : plan.passes) {
    EXPECT_LE(pass.num_rows, max_rows);
    int row = 0;
    for (int i = pass.first_segment; i < pass.first_segment + pass.num_segments; ++i) {
      EXPECT_EQ(plan.segments[i].row, row);
      row += (plan.segments[i].num_rows + kPrefillTile - 1) / kPrefillTile * kPrefillTile;
    }
    EXPECT_EQ(row, pass.num_rows);
    walk.pass(plan, pass, pieces);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    const host::Piece& p = pieces[i];
    EXPECT_EQ(plan.is_expanded[i] != 0, kind[p.first_row] == 1);
    if (p.first_position >= 0) longest = std::max(longest, p.first_position + p.num_rows);
    for (int r = 0; r < p.num_rows; ++r) {
      EXPECT_EQ(walk.seen.count(p.first_row + r) > 0, plan.is_expanded[i] != 0);
      if (plan.is_expanded[i] != 0) {
        EXPECT_EQ(walk.seen[p.first_row + r], p.first_position + r + 1);
      }
    }
  }
  const PrefillBounds bounds = prefill_bounds(num_rows, longest, max_rows);
  EXPECT_LE(static_cast<int64_t>(plan.segments.size()), bounds.segments);
  EXPECT_LE(static_cast<int64_t>(plan.items.size()), bounds.items);
}

TEST(PrefillPlan, ChoosesTheCheaperWay) {
  EXPECT_FALSE(expands(1, 5000));
  EXPECT_FALSE(expands(63, 0));
  EXPECT_TRUE(expands(128, 0));
  EXPECT_TRUE(expands(4096, 0));
  EXPECT_FALSE(expands(100, 8000)) << "8000 positions taken up for 100 rows";
  EXPECT_TRUE(expands(1024, 100000));
}

TEST(PrefillPlan, EveryRowSeesItsPast) {
  expect_right({{0, 4096}, {0, 4096}}, 8192, 32768);
  expect_right({{0, 300}}, 300, 128);
  expect_right({{1500, 250}, {0, 130}, {300, 200}}, 580, 1920);
  expect_right({{-1, 2}, {0, 200}, {5, 9}, {-1, 2}, {30, 230}, {-1, 1}}, 460, 1024);
  expect_right({{-1, 1}, {-1, 1}}, 8, 512);
  expect_right({}, 0, 512);
}

TEST(PrefillPlan, RandomSteps) {
  std::mt19937 rng(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::pair<int, int>> slices;
    int rows = static_cast<int>(rng() % 5);
    for (int n = 1 + static_cast<int>(rng() % 6); n > 0; --n) {
      const bool decode = rng() % 3 == 0;
      slices.emplace_back(decode ? -1 : static_cast<int>(rng() % 2 * (rng() % 2000)), decode ? 1 : 1 + rng() % 700);
      rows += slices.back().second;
    }
    expect_right(slices, rows, static_cast<int>(1 + rng() % 12) * kPrefillTile);
    if (::testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

TEST(PrefillPlan, WithoutRoomEverythingStaysAbsorbed) {
  const auto pieces = pieces_of({{0, 4096}});
  const PrefillPlan plan = plan_prefill(pieces, 4096, 0);
  EXPECT_TRUE(plan.passes.empty());
  EXPECT_EQ(plan.num_absorbed, 4096);
  EXPECT_EQ(prefill_bounds(4096, 4096, 0).items, 0);
}

}  // namespace
}  // namespace manta::backend::cuda
