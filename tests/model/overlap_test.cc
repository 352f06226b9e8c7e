#include "model/overlap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

namespace manta::model {
namespace {

backend::ModelShape shape_of(int layers, int dense, int mtp, int shared) {
  backend::ModelShape shape;
  shape.num_hidden_layers = layers;
  shape.first_k_dense_replace = dense;
  shape.num_mtp_layers = mtp;
  shape.n_routed_experts = 8;
  shape.n_shared_experts = shared;
  return shape;
}

StageOrder part_of(const StageOrder& order, int microbatch) {
  StageOrder part;
  for (StageCall call : order) {
    if (call.microbatch != microbatch) continue;
    call.microbatch = 0;
    part.push_back(call);
  }
  return part;
}

size_t place(const StageOrder& order, const StageCall& call) {
  return static_cast<size_t>(std::find(order.begin(), order.end(), call) - order.begin());
}

const backend::ModelShape kShapes[] = {shape_of(4, 1, 1, 1), shape_of(3, 3, 0, 1), shape_of(2, 0, 1, 0),
                                       shape_of(1, 0, 0, 1)};

TEST(Overlap, OneMicrobatchIsTheModelFromTopToBottom) {
  const StageOrder order = make_stage_order(shape_of(2, 1, 1, 1), 1);
  const StageOrder expected = {
      {0, Stage::kGatherInputs, -1}, {0, Stage::kEmbed, -1},         {0, Stage::kAttnProject, 0},
      {0, Stage::kAttnAttend, 0},    {0, Stage::kDenseMlp, 0},       {0, Stage::kAttnProject, 1},
      {0, Stage::kAttnAttend, 1},    {0, Stage::kRoute, 1},          {0, Stage::kDispatchStart, 1},
      {0, Stage::kSharedExpert, 1},  {0, Stage::kDispatchFinish, 1}, {0, Stage::kExperts, 1},
      {0, Stage::kCombineStart, 1},  {0, Stage::kCombineFinish, 1},  {0, Stage::kMerge, 1},
      {0, Stage::kHead, -1},         {0, Stage::kSample, -1},        {0, Stage::kMtpInput, -1},
      {0, Stage::kAttnProject, 2},   {0, Stage::kAttnAttend, 2},     {0, Stage::kRoute, 2},
      {0, Stage::kDispatchStart, 2}, {0, Stage::kSharedExpert, 2},   {0, Stage::kDispatchFinish, 2},
      {0, Stage::kExperts, 2},       {0, Stage::kCombineStart, 2},   {0, Stage::kCombineFinish, 2},
      {0, Stage::kMerge, 2},         {0, Stage::kMtpDraft, -1}};
  EXPECT_EQ(order, expected);
}

StageOrder without_shared_experts(StageOrder order) {
  std::erase_if(order, [](const StageCall& call) { return call.stage == Stage::kSharedExpert; });
  return order;
}

TEST(Overlap, EachMicrobatchRunsTheUnsplitModel) {
  for (const auto& shape : kShapes) {
    const StageOrder whole = make_stage_order(shape, 1), split = make_stage_order(shape, 2);
    EXPECT_EQ(split.size(), 2 * whole.size());
    for (const int microbatch : {0, 1}) {
      const StageOrder part = part_of(split, microbatch);
      EXPECT_EQ(without_shared_experts(part), without_shared_experts(whole));
      for (const StageCall& call : part) {  // its input is there and is not yet another layer's; merge adds it
        if (call.stage != Stage::kSharedExpert) continue;
        EXPECT_LT(place(part, {0, Stage::kDispatchStart, call.layer}), place(part, call));
        EXPECT_LT(place(part, call), place(part, {0, Stage::kMerge, call.layer}));
      }
    }
  }
}

TEST(Overlap, EveryStartHasOneFinishBeforeTheNextStart) {
  for (const auto& shape : kShapes) {
    int open[2] = {0, 0};
    for (const StageCall& call : make_stage_order(shape, 2)) {
      const bool starts = call.stage == Stage::kDispatchStart || call.stage == Stage::kCombineStart;
      const bool finishes = call.stage == Stage::kDispatchFinish || call.stage == Stage::kCombineFinish;
      open[call.microbatch] += starts - finishes;
      ASSERT_GE(open[call.microbatch], 0);
      ASSERT_LE(open[call.microbatch], 1);
    }
    EXPECT_EQ(open[0] + open[1], 0);
  }
}

// What DBO is for: between a microbatch's start and its finish, the other one computes.
TEST(Overlap, TrafficRunsUnderTheOthersCompute) {
  const StageOrder order = make_stage_order(shape_of(4, 1, 1, 1), 2);
  const std::pair<Stage, Stage> kTraffic[] = {{Stage::kDispatchStart, Stage::kDispatchFinish},
                                              {Stage::kCombineStart, Stage::kCombineFinish}};
  for (const int microbatch : {0, 1}) {
    for (int layer = 1; layer < 4; ++layer) {
      for (const auto& [start, finish] : kTraffic) {
        const size_t from = place(order, {microbatch, start, layer}), to = place(order, {microbatch, finish, layer});
        ASSERT_LT(to, order.size());
        const auto other = std::count_if(order.begin() + from, order.begin() + to, [&](const StageCall& c) {
          return c.microbatch != microbatch && (c.stage == Stage::kAttnAttend || c.stage == Stage::kExperts);
        });
        EXPECT_GE(other, 1) << microbatch << " " << layer << " " << to_string(start);
      }
    }
  }
}

TEST(Overlap, APromptMayBeCutBetweenTheMicrobatches) {
  for (const auto& shape : kShapes) {
    const StageOrder order = make_stage_order(shape, 2);
    for (int layer = 0; layer < shape.num_layers(); ++layer) {
      EXPECT_LT(place(order, {0, Stage::kAttnProject, layer}), place(order, {1, Stage::kAttnAttend, layer}));
    }
  }
}

}  // namespace
}  // namespace manta::model
