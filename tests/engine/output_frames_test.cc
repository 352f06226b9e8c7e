#include "engine/output_frames.h"

#include <gtest/gtest.h>

#include <numeric>

namespace manta::engine {
namespace {

sample::TokenLogprobs row(int n) {
  sample::TokenLogprobs out;
  out.token_ids.resize(n);
  std::iota(out.token_ids.begin(), out.token_ids.end(), 1000);
  out.logprobs.assign(n, -1.5f);
  return out;
}

TEST(OutputFrames, WhatFitsIsOneFrame) {
  Outputs outputs;
  outputs.step = 7;
  outputs.requests.resize(3);
  const auto frames = split_outputs(std::move(outputs));
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].step, 7u);
  EXPECT_EQ(frames[0].requests.size(), 3u);
  EXPECT_EQ(split_outputs({}).size(), 1u);  // an engine that went idle says so without requests
}

// 40 rows of a vocabulary of 129,280 are 50 MB; the wire takes 16 MiB a frame.
TEST(OutputFrames, RowsOfAWholeVocabularyAreSpreadOverFramesThatFit) {
  constexpr int kVocabulary = 129280, kNumRows = 40;
  Outputs outputs;
  RequestOutput& first = outputs.requests.emplace_back();
  first.id = {1, 1};
  first.tokens = {3};
  first.num_cached_tokens = 5;
  for (int i = 0; i < kNumRows; ++i) first.prompt_logprobs.push_back(row(kVocabulary));
  for (uint64_t serial = 2; serial < 12; ++serial) {
    RequestOutput& out = outputs.requests.emplace_back();
    out.id = {1, serial};
    out.tokens = {4};
    out.logprobs.push_back(row(kVocabulary));
  }
  size_t num_rows = 0;
  std::vector<uint64_t> with_tokens;
  const auto frames = split_outputs(std::move(outputs));
  EXPECT_GT(frames.size(), 5u);
  for (const Outputs& frame : frames) {
    ASSERT_FALSE(frame.requests.empty());
    EXPECT_LE(encode(frame).size(), size_t{kMaxPayloadBytes});
    for (const RequestOutput& out : frame.requests) {
      num_rows += out.prompt_logprobs.size();
      EXPECT_EQ(out.num_cached_tokens, out.id.serial == 1 ? 5 : 0);
      if (!out.tokens.empty()) with_tokens.push_back(out.id.serial);
    }
  }
  EXPECT_EQ(num_rows, size_t{kNumRows});
  std::vector<uint64_t> all(11);
  std::iota(all.begin(), all.end(), 1);
  EXPECT_EQ(with_tokens, all);
}

}  // namespace
}  // namespace manta::engine
