// A token's logits are the same bits whatever shared its step: alone or in a batch, whole or in chunks, one microbatch
// or two, prefix hit or miss, preempted or not, drafts verified or not. So are the tokens, greedy and sampled.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "stage_walk.h"

namespace manta::backend::testing {
namespace {

constexpr int kBlockSize = 16;
constexpr int kNumSequences = 3;
constexpr int kNewTokens = 12;
constexpr int kMaxLen = 256;

struct Sequence {
  std::vector<TokenId> prompt;
  sample::SamplingParams sampling;
};

std::vector<Sequence> sequences() {
  std::vector<Sequence> out(kNumSequences);
  std::mt19937 rng(5);
  const int lengths[kNumSequences] = {150, 33, 71};
  for (int i = 0; i < kNumSequences; ++i) {
    for (int j = 0; j < lengths[i]; ++j) out[i].prompt.push_back(static_cast<TokenId>(3 + rng() % 4000));
    out[i].sampling.temperature = i == 0 ? 0.0f : 0.9f;
    out[i].sampling.seed = 100 + i;
    if (i == 2) out[i].sampling.top_p = 0.8f;
  }
  // The last shares its first blocks with the first.
  std::copy_n(out[0].prompt.begin(), 50, out[2].prompt.begin());
  return out;
}

// What a schedule produced: logits of every computed position, and the generated tokens.
struct Outcome {
  std::map<std::pair<int, int>, std::vector<float>> logits;  // by sequence and position
  std::vector<std::vector<TokenId>> tokens = std::vector<std::vector<TokenId>>(kNumSequences);
};

class Invariance : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = make_backend(GetParam(), {.num_threads = 2});
    ASSERT_TRUE(backend.ok()) << backend.error().message;
    walk_ = std::make_unique<StageWalk>(
        std::move(*backend), "models/tiny-v3",
        Limits{.max_num_seqs = kNumSequences, .max_num_tokens = 300, .max_model_len = kMaxLen, .num_microbatches = 2},
        kNumSequences * kMaxLen / kBlockSize, kBlockSize);
    walk_->head_logits = [this](const StepView& view, const Activations& act) { keep_logits(view, act); };
    known_.resize(kNumSequences);
  }

  // ---- a schedule is written with these -----------------------------------------------------------------------------

  void begin() {
    outcome_ = {};
    if (!released_all_) {
      for (int i = 0; i < kNumSequences; ++i) release_.push_back(i);
    }
    released_all_ = false;
    for (int i = 0; i < kNumSequences; ++i) admit(i, sequences_[i].prompt);
  }

  void admit(int i, const std::vector<TokenId>& tokens, int num_shared_blocks = 0) {
    known_[i] = tokens;
    blocks_[i].clear();
    for (int b = 0; b < kMaxLen / kBlockSize; ++b) {
      // Sequence 2 may read the leading blocks of sequence 0.
      const int owner = b < num_shared_blocks ? 0 : i;
      blocks_[i].push_back(owner + kNumSequences * b);
    }
    std::erase_if(admit_, [i](const SlotAdmission& a) { return a.slot == i; });
    admit_.push_back(
        {i, known_[i], static_cast<int>(sequences_[i].prompt.size()), blocks_[i], &sequences_[i].sampling});
  }

  static RowSlice chunk(int i, int first, int num_rows, int total) {
    return {.slot = i,
            .num_rows = num_rows,
            .first_position = first,
            .samples = first + num_rows == total,
            .prompt_logprobs = true};
  }
  static RowSlice decode(int i, int num_rows) { return {.slot = i, .num_rows = num_rows, .max_seq_len = kMaxLen}; }

  void step(const std::vector<RowSlice>& slices, int num_microbatches = 1, int padded = 0) {
    pending_.clear();
    const StepOutputs out = walk_->step({.released = release_,
                                         .admitted = admit_,
                                         .slices = slices,
                                         .padded_num_tokens = padded,
                                         .num_microbatches = num_microbatches});
    release_.clear();
    admit_.clear();
    std::map<int, size_t> accepted;  // decode rows that count, by slot
    for (const auto& slice : out.slices) {
      EXPECT_EQ(slice.error, "");
      auto& tokens = outcome_.tokens[slice.slot];
      tokens.insert(tokens.end(), slice.tokens.begin(), slice.tokens.end());
      accepted[slice.slot] = slice.tokens.size();
    }
    for (const RowSlice& s : slices) {
      size_t row = 0;
      for (auto& [position, logits] : pending_[s.slot]) {
        if (s.first_position < 0 && row++ >= accepted[s.slot]) break;  // computed from a rejected draft
        outcome_.logits[{s.slot, position}] = std::move(logits);
      }
    }
  }

  void decode_all(int num_rows, int num_microbatches = 1) {
    for (;;) {
      std::vector<RowSlice> slices;
      for (int i = 0; i < kNumSequences; ++i) {
        if (outcome_.tokens[i].size() < kNewTokens) slices.push_back(decode(i, num_rows));
      }
      if (slices.empty()) return;
      step(slices, num_microbatches, num_microbatches > 1 ? static_cast<int>(slices.size()) * num_rows : 0);
    }
  }

  int length(int i) const { return static_cast<int>(sequences_[i].prompt.size()); }

  // Each sequence by itself, whole prompts, one row at a time.
  Outcome plain() {
    begin();
    for (int i = 0; i < kNumSequences; ++i) {
      step({chunk(i, 0, length(i), length(i))});
      while (outcome_.tokens[i].size() < kNewTokens) step({decode(i, 1)});
    }
    return outcome_;
  }

  void expect_same(const Outcome& expected, const Outcome& actual) {
    for (int i = 0; i < kNumSequences; ++i) {
      auto tokens = actual.tokens[i];
      tokens.resize(kNewTokens);  // with drafts accepted the last step may bring one too many
      EXPECT_EQ(tokens, expected.tokens[i]) << "sequence " << i;
    }
    for (const auto& [key, logits] : expected.logits) {
      const auto found = actual.logits.find(key);
      ASSERT_NE(found, actual.logits.end()) << "sequence " << key.first << ", position " << key.second;
      ASSERT_EQ(found->second, logits) << "sequence " << key.first << ", position " << key.second;
    }
  }

  std::vector<Sequence> sequences_ = sequences();
  std::vector<SlotId> release_;
  std::vector<SlotAdmission> admit_;
  Outcome outcome_;

 private:
  void keep_logits(const StepView& view, const Activations& act) {
    const int64_t v = act.logits.shape[1];
    std::vector<float> logits(static_cast<size_t>(view.num_logit_rows) * v);
    std::copy_n(act.logits.as<float>(), logits.size(), logits.begin());
    for (int i = 0; i < view.num_logit_rows; ++i) {
      const int row = view.logit_rows.as<int32_t>()[i];
      const int position = view.positions.as<int32_t>()[row];
      if (position < 0) continue;
      const SlotId slot = view.slots.as<int32_t>()[view.row_req.as<int32_t>()[row]];
      pending_[slot][position].assign(logits.begin() + i * v, logits.begin() + (i + 1) * v);
    }
  }

  std::unique_ptr<StageWalk> walk_;
  std::vector<std::vector<TokenId>> known_;
  std::map<int, std::vector<BlockId>> blocks_;
  std::map<int, std::map<int, std::vector<float>>> pending_;  // by slot and position
  bool released_all_ = true;
};

TEST_P(Invariance, ChunksBatchesMicrobatchesAndDrafts) {
  const Outcome expected = plain();
  for (int chunk_size : {7, 64}) {
    SCOPED_TRACE("chunks of " + std::to_string(chunk_size));
    begin();
    for (int first = 0; first < length(0); first += chunk_size) {
      std::vector<RowSlice> slices;
      for (int i = kNumSequences - 1; i >= 0; --i) {
        const int left = length(i) - first;
        if (left > 0) slices.push_back(chunk(i, first, std::min(left, chunk_size), length(i)));
      }
      step(slices, 2);
    }
    decode_all(1);
    expect_same(expected, outcome_);
  }
  SCOPED_TRACE("drafts verified, two microbatches");
  begin();
  std::vector<RowSlice> slices;
  for (int i = 0; i < kNumSequences; ++i) slices.push_back(chunk(i, 0, length(i), length(i)));
  step(slices, 2, 140);
  decode_all(2, 2);
  expect_same(expected, outcome_);
}

TEST_P(Invariance, PrefixHit) {
  const Outcome expected = plain();
  begin();
  step({chunk(0, 0, length(0), length(0)), chunk(1, 0, length(1), length(1))});
  const int shared = 48;  // three blocks of the 50 common tokens
  release_.push_back(2);
  admit(2, sequences_[2].prompt, shared / kBlockSize);
  step({chunk(2, shared, length(2) - shared, length(2))});
  decode_all(1);
  for (int p = 0; p < shared; ++p) outcome_.logits[{2, p}] = expected.logits.at({2, p});  // not computed: cached
  expect_same(expected, outcome_);
}

TEST_P(Invariance, PreemptionRecomputes) {
  const Outcome expected = plain();
  begin();
  for (int i = 0; i < kNumSequences; ++i) step({chunk(i, 0, length(i), length(i))});
  for (int n = 0; n < 4; ++n) step({decode(0, 1), decode(1, 2), decode(2, 1)});
  // Sequence 1 loses its seat, others go on, it comes back with what it had and prefills all of it.
  std::vector<TokenId> tokens = sequences_[1].prompt;
  tokens.insert(tokens.end(), outcome_.tokens[1].begin(), outcome_.tokens[1].end());
  release_.push_back(1);
  step({decode(0, 1)});
  admit(1, tokens);
  const int n = static_cast<int>(tokens.size());
  step({decode(2, 1), chunk(1, 0, 20, n)});
  step({chunk(1, 20, n - 20, n), decode(0, 1)});
  decode_all(2);
  expect_same(expected, outcome_);
}

INSTANTIATE_TEST_SUITE_P(Backends, Invariance, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace manta::backend::testing
