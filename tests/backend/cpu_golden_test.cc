// The cpu backend against Hugging Face's float32 logits and greedy tokens, with Hugging Face's own bf16 run
// (tests/golden/hf_bf16_kl.json, made by tools/oracle/bf16_kl.py) as the yardstick.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backend/cpu/cpu_backend.h"
#include "golden_files.h"
#include "stage_walk.h"

namespace manta::backend::testing {
namespace {

constexpr double kMaxMedianKl = 2e-4;
constexpr double kMaxMeanOverHfBf16 = 1.5;
constexpr double kMinGap = 0.05;  // between HF's two best log probabilities: below it bf16 may choose otherwise
constexpr TokenId kEndToken = 1;
constexpr int kBlockSize = 64;
constexpr int kChunk = 512;
constexpr int kNewTokens = 48;

class CpuGolden : public ::testing::Test {
 protected:
  void SetUp() override {
    golden_ = read_golden("tests/golden/prompts.safetensors");
    int num_blocks = 0;
    for (const auto& [name, tensor] : golden_) {
      if (!name.ends_with(".input_ids")) continue;
      prompts_.push_back(name.substr(0, name.find('.')));
      num_blocks += blocks_for(static_cast<int>(tensor.i32.size()));
    }
    greedy_.temperature = 0.0f;
    walk_ = std::make_unique<StageWalk>(
        std::move(cpu::make_cpu_backend({})).value(), "models/tiny-v3",
        Limits{.max_num_seqs = static_cast<int>(prompts_.size()), .max_num_tokens = kChunk, .max_model_len = 4096},
        num_blocks, kBlockSize);
  }

  static int blocks_for(int num_tokens) { return (num_tokens + kNewTokens) / kBlockSize + 1; }

  // Returns the first generated token; appends the KL of every position that has golden logits to kl_.
  TokenId prefill(SlotId slot, const std::string& name) {
    const auto& tokens = golden_.at(name + ".input_ids").i32;
    const auto& positions = golden_.at(name + ".logit_positions").i32;
    const auto& expected = golden_.at(name + ".logits").f32;
    const auto n = static_cast<int>(tokens.size());
    const int64_t v = walk_->shape().vocab_size;
    std::vector<BlockId> blocks(blocks_for(n));
    for (BlockId& b : blocks) b = next_block_++;
    const SlotAdmission admission = {slot, tokens, n, blocks, &greedy_};
    int first = 0;
    walk_->head_logits = [&](const StepView& view, const Activations& act) {
      for (size_t i = 0; i < positions.size(); ++i) {
        if (positions[i] < first || positions[i] >= first + view.num_tokens) continue;
        kl_.push_back(kl_divergence(&expected[i * v], act.logits.as<float>() + (positions[i] - first) * v, v));
      }
    };
    StepOutputs out;
    for (; first < n; first += kChunk) {
      const int rows = std::min(kChunk, n - first);
      const RowSlice slice = {.slot = slot,
                              .num_rows = rows,
                              .first_position = first,
                              .samples = first + rows == n,
                              .prompt_logprobs = true};
      StepInputs inputs = {.slices = {&slice, 1}};
      if (first == 0) inputs.admitted = {&admission, 1};
      out = walk_->step(inputs);
    }
    walk_->head_logits = nullptr;
    return out.slices.at(0).tokens.at(0);
  }

  GoldenTensors golden_;
  std::vector<std::string> prompts_;
  sample::SamplingParams greedy_;
  std::unique_ptr<StageWalk> walk_;
  BlockId next_block_ = 0;
  std::vector<double> kl_;
};

// How many greedy tokens bf16 must get right: to the end token, or to the first one that HF was nearly torn about.
int num_decided(const GoldenTensor& greedy, const GoldenTensor& top20) {
  for (int j = 0; j < kNewTokens; ++j) {
    if (top20.f32[j * 20] - top20.f32[j * 20 + 1] <= kMinGap) return j;
    if (greedy.i32[j] == kEndToken) return j + 1;
  }
  return kNewTokens;
}

TEST_F(CpuGolden, LogitsAreAsCloseAsHuggingFaceInBf16AndGreedyTokensEqual) {
  std::vector<std::vector<TokenId>> tokens;
  for (size_t i = 0; i < prompts_.size(); ++i) tokens.push_back({prefill(static_cast<SlotId>(i), prompts_[i])});
  std::vector<RowSlice> slices;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    slices.push_back({.slot = static_cast<SlotId>(i), .num_rows = 1, .max_seq_len = 4096});
  }
  for (int j = 1; j < kNewTokens; ++j) {
    const StepOutputs out = walk_->step({.slices = slices});
    for (size_t i = 0; i < prompts_.size(); ++i) tokens[i].push_back(out.slices[i].tokens.at(0));
  }
  int compared = 0;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    const GoldenTensor& greedy = golden_.at(prompts_[i] + ".greedy_ids");
    const int n = num_decided(greedy, golden_.at(prompts_[i] + ".top20_logprobs"));
    compared += n;
    for (int j = 0; j < n; ++j) ASSERT_EQ(tokens[i][j], greedy.i32[j]) << prompts_[i] << ", token " << j;
  }
  EXPECT_GT(compared, 200) << "the gap rule must not excuse everything";

  nlohmann::json bf16;
  std::ifstream("tests/golden/hf_bf16_kl.json") >> bf16;
  ASSERT_EQ(kl_.size(), bf16.at("positions").get<size_t>());
  double mean = 0;
  for (const double kl : kl_) mean += kl / static_cast<double>(kl_.size());
  std::sort(kl_.begin(), kl_.end());
  const double median = kl_[kl_.size() / 2], hf_mean = bf16.at("mean_kl");
  RecordProperty("mean_kl", std::to_string(mean));
  RecordProperty("median_kl", std::to_string(median));
  printf(
      "KL to HF float32 at %zu positions: mean %.2e (HF bf16 %.2e), median %.2e (HF bf16 %.2e), max %.2e; %d tokens "
      "equal\n",
      kl_.size(), mean, hf_mean, median, bf16.at("median_kl").get<double>(), kl_.back(), compared);
  EXPECT_LE(median, kMaxMedianKl);
  EXPECT_LE(mean, kMaxMeanOverHfBf16 * hf_mean);
}

}  // namespace
}  // namespace manta::backend::testing
