// The reference against Hugging Face in float32: hidden states and routing layer by layer, logits, 48 greedy tokens of
// every prompt, MTP drafts and their logits. See tests/golden/README.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_weights.h"
#include "golden_files.h"
#include "stage_cases.h"
#include "stage_walk.h"

namespace manta::backend::testing {
namespace {

constexpr double kLogitBound = 2e-5;  // of a row's range; measured: 5e-6
constexpr int kNewTokens = 48;
constexpr int kChunk = 512;  // rows of a prefill step

std::string prompt_name(const std::string& tensor) {
  return tensor.substr(0, tensor.find('.'));
}

std::vector<TokenId> argmax_rows(const Tensor& logits, int n) {
  std::vector<TokenId> out;
  const int64_t v = logits.shape[1];
  for (int i = 0; i < n; ++i) {
    const float* row = logits.as<float>() + i * v;
    out.push_back(static_cast<TokenId>(std::max_element(row, row + v) - row));
  }
  return out;
}

// Largest |a - b| over the range of b.
double logit_error(const float* a, const float* b, int64_t n) {
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) worst = std::max(worst, std::fabs(double{a[i]} - b[i]));
  const auto [low, high] = std::minmax_element(b, b + n);
  return worst / (*high - *low);
}

class RefGolden : public ::testing::Test {
 protected:
  static constexpr int kBlockSize = 64;

  void SetUp() override { greedy_.temperature = 0.0f; }

  void make_walk(int max_num_seqs, int max_num_tokens, int num_blocks) {
    walk_ = std::make_unique<StageWalk>(
        std::move(ref::make_ref_backend({})).value(), "models/tiny-v3",
        Limits{.max_num_seqs = max_num_seqs, .max_num_tokens = max_num_tokens, .max_model_len = 4096}, num_blocks,
        kBlockSize);
  }

  // Gives the slot new blocks for `num_tokens` tokens.
  std::vector<BlockId> take_blocks(int num_tokens) {
    std::vector<BlockId> blocks((num_tokens + kBlockSize - 1) / kBlockSize);
    for (BlockId& b : blocks) b = next_block_++;
    return blocks;
  }

  // The whole of `tokens` in one slot, in chunks; calls each(first position) after each step.
  template <typename Each>
  void prefill(SlotId slot, const std::vector<TokenId>& tokens, bool all_logits, Each&& each) {
    const auto n = static_cast<int>(tokens.size());
    const auto blocks = take_blocks(n + kNewTokens + 1);
    const SlotAdmission admission = {slot, tokens, n, blocks, &greedy_};
    for (int first = 0; first < n; first += kChunk) {
      const int num_rows = std::min(kChunk, n - first);
      const RowSlice slice = {.slot = slot,
                              .num_rows = num_rows,
                              .first_position = first,
                              .samples = first + num_rows == n,
                              .prompt_logprobs = all_logits};
      StepInputs inputs = {.slices = {&slice, 1}};
      if (first == 0) inputs.admitted = {&admission, 1};
      each(first, walk_->step(inputs));
    }
  }

  sample::SamplingParams greedy_;
  std::unique_ptr<StageWalk> walk_;
  BlockId next_block_ = 0;
};

// ---- layer by layer ------------------------------------------------------------------------------------------------

class RefGoldenDetail : public RefGolden, public ::testing::WithParamInterface<const char*> {};

TEST_P(RefGoldenDetail, HiddenStatesAndRoutingOfEveryLayer) {
  GoldenTensors golden = read_golden(std::string("tests/golden/detail_") + GetParam() + ".safetensors");
  const std::vector<TokenId> tokens = golden["input_ids"].i32;
  const auto n = static_cast<int64_t>(tokens.size());
  make_walk(1, kChunk, 8);
  const int64_t d = walk_->shape().hidden_size;
  const auto& hidden = golden["hidden"].f32;
  const auto expect_hidden = [&](int stage, const float* values) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n * d; ++i) {
      error += std::pow(double{values[i]} - hidden[stage * n * d + i], 2);
      norm += std::pow(hidden[stage * n * d + i], 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 1e-5) << "stage " << stage << " of hidden";
  };
  int num_close_calls = 0;
  walk_->observer = [&](int layer, const StepView&, const Activations& act) {
    std::vector<float> sum(n * d);
    for (int64_t i = 0; i < n * d; ++i) {
      sum[i] = act.hidden.hidden.as<float>()[i] + (layer < 0 ? 0.0f : act.hidden.residual.as<float>()[i]);
    }
    expect_hidden(layer + 1, sum.data());
    if (layer < walk_->shape().first_k_dense_replace) return;
    const int moe = layer - walk_->shape().first_k_dense_replace, k = walk_->shape().num_experts_per_tok;
    const int num_experts = walk_->shape().n_routed_experts;
    const auto& bias = dynamic_cast<const ref::RefWeight&>(*walk_->weights().layers[layer].gate.correction_bias);
    for (int64_t t = 0; t < n; ++t) {
      const float* router_logits = &golden["router_logits"].f32[(moe * n + t) * num_experts];
      if (routing_margin(walk_->shape(), router_logits, bias.data.data()) <= 1e-5) {
        ++num_close_calls;
        continue;
      }
      std::vector<std::pair<int32_t, float>> chosen, expected;
      for (int j = 0; j < k; ++j) {
        chosen.emplace_back(act.topk_id.as<int32_t>()[t * k + j], act.topk_weight.as<float>()[t * k + j]);
        const int64_t g = (moe * n + t) * k + j;
        expected.emplace_back(golden["expert_ids"].i32[g], golden["expert_weights"].f32[g]);
      }
      std::sort(chosen.begin(), chosen.end());  // the file has them by id
      for (int j = 0; j < k; ++j) {
        EXPECT_EQ(chosen[j].first, expected[j].first) << "layer " << layer << ", position " << t;
        EXPECT_NEAR(chosen[j].second, expected[j].second, 2e-5) << "layer " << layer << ", position " << t;
      }
    }
  };
  prefill(0, tokens, false, [](int, const StepOutputs&) {});
  expect_hidden(walk_->shape().num_hidden_layers + 1, walk_->act().final_hidden.as<float>());
  EXPECT_LE(num_close_calls, n / 2) << "the margin rule must not hide a wrong router";
}

INSTANTIATE_TEST_SUITE_P(Prompts, RefGoldenDetail, ::testing::Values("glossary_ep", "multi_turn", "raw_cjk"));

// ---- logits, greedy tokens, drafts ---------------------------------------------------------------------------------

struct Prompt {
  std::string name;
  std::vector<TokenId> tokens, greedy, drafts;
};

std::vector<Prompt> read_prompts(const GoldenTensors& golden, size_t max_tokens) {
  std::vector<Prompt> prompts;
  for (const auto& [name, tensor] : golden) {
    if (!name.ends_with(".input_ids") || tensor.i32.size() > max_tokens) continue;
    const std::string p = prompt_name(name);
    prompts.push_back({p, tensor.i32, golden.at(p + ".greedy_ids").i32, golden.at(p + ".mtp_draft_ids").i32});
  }
  return prompts;
}

class RefGoldenPrompts : public RefGolden {
 protected:
  void run(size_t max_tokens) {
    golden_ = read_golden("tests/golden/prompts.safetensors");
    prompts_ = read_prompts(golden_, max_tokens);
    int num_blocks = 0;
    for (const Prompt& p : prompts_) num_blocks += static_cast<int>(p.tokens.size()) / kBlockSize + 3;
    make_walk(static_cast<int>(prompts_.size()), kChunk, num_blocks);
    for (size_t i = 0; i < prompts_.size(); ++i) prefill_prompt(static_cast<SlotId>(i), prompts_[i]);
    for (int j = 1; j < kNewTokens; ++j) decode(j);
  }
  size_t num_prompts() const { return prompts_.size(); }
  double worst() const { return worst_; }

 private:
  void prefill_prompt(SlotId slot, const Prompt& p) {
    const auto& positions = golden_.at(p.name + ".logit_positions").i32;
    const auto& expected = golden_.at(p.name + ".logits").f32;
    const int64_t v = walk_->shape().vocab_size;
    int first = 0, compared = 0;
    walk_->head_logits = [&](const StepView& view, const Activations& act) {
      for (size_t i = 0; i < positions.size(); ++i) {
        if (positions[i] < first || positions[i] >= first + view.num_tokens) continue;
        const double error = logit_error(act.logits.as<float>() + (positions[i] - first) * v, &expected[i * v], v);
        EXPECT_LT(error, kLogitBound) << p.name << ", position " << positions[i];
        worst_ = std::max(worst_, error);
        ++compared;
      }
      first += view.num_tokens;
    };
    StepOutputs last;
    prefill(slot, p.tokens, /*all_logits=*/true, [&](int, StepOutputs out) { last = std::move(out); });
    walk_->head_logits = nullptr;
    EXPECT_EQ(compared, static_cast<int>(positions.size())) << p.name;
    ASSERT_EQ(last.slices.size(), 1u);
    EXPECT_THAT(last.slices[0].tokens, ::testing::ElementsAre(p.greedy[0])) << p.name;
    EXPECT_EQ(argmax_rows(walk_->act().logits, 1)[0], p.drafts[0]) << p.name << ", draft 0";
  }

  // Token j of every prompt in one step, without verifying drafts, so that there is one to compare after every token.
  void decode(int j) {
    std::vector<RowSlice> slices;
    for (size_t i = 0; i < prompts_.size(); ++i) {
      slices.push_back({.slot = static_cast<SlotId>(i), .num_rows = 1, .max_seq_len = 4096});
    }
    const StepOutputs out = walk_->step({.slices = slices});
    const auto drafts = argmax_rows(walk_->act().logits, static_cast<int>(prompts_.size()));
    for (size_t i = 0; i < prompts_.size(); ++i) {
      EXPECT_THAT(out.slices[i].tokens, ::testing::ElementsAre(prompts_[i].greedy[j])) << prompts_[i].name << ", " << j;
      EXPECT_EQ(drafts[i], prompts_[i].drafts[j]) << prompts_[i].name << ", draft " << j;
    }
  }

  GoldenTensors golden_;
  std::vector<Prompt> prompts_;
  double worst_ = 0;  // logit error
};

// Sanitizers make the loops an order of magnitude slower; the long prompts add length, not paths.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kMaxPromptTokens = 120;
#else
constexpr size_t kMaxPromptTokens = 4096;
#endif

TEST_F(RefGoldenPrompts, LogitsGreedyTokensAndDrafts) {
  run(kMaxPromptTokens);
  RecordProperty("worst_logit_error", std::to_string(worst() * 1e6) + "e-6 of the range");
  EXPECT_GE(num_prompts(), kMaxPromptTokens > 3000 ? 25u : 17u);
}

// Draft logits at any position: the module run over prompt and greedy text in one go.
TEST_F(RefGolden, MtpLogits) {
  GoldenTensors golden = read_golden("tests/golden/prompts.safetensors");
  for (const char* name : {"glossary_ep", "multi_turn", "pass_500"}) {
    SCOPED_TRACE(name);
    const std::string p = name;
    std::vector<TokenId> tokens = golden[p + ".input_ids"].i32;
    const auto& greedy = golden[p + ".greedy_ids"].i32;
    tokens.insert(tokens.end(), greedy.begin(), greedy.begin() + 8);
    const auto& positions = golden[p + ".mtp_positions"].i32;
    const auto& expected = golden[p + ".mtp_logits"].f32;
    ASSERT_EQ(positions.size(), 5u);
    next_block_ = 0;
    make_walk(5, 1024, 16);  // one chunk, and as many slots as rows asked for
    const int64_t v = walk_->shape().vocab_size;
    int compared = 0;
    walk_->mtp_logits = [&](const StepView& view, Activations& act) {
      // Ask for these rows in place of the last accepted ones; nothing accepted, so that no draft is stored.
      StepView asked = view;
      asked.sample.num_slices = static_cast<int>(positions.size());
      std::copy(positions.begin(), positions.end(), asked.sample.draft_row.as<int32_t>());
      std::fill_n(asked.sample.num_accepted.as<int32_t>(), positions.size(), 0);
      walk_->backend().mtp_draft(walk_->backend().lane(0), asked, *walk_->weights().mtp.norm, walk_->weights().head,
                                 act);
      for (size_t i = 0; i < positions.size(); ++i) {
        EXPECT_LT(logit_error(act.logits.as<float>() + i * v, &expected[i * v], v), kLogitBound)
            << "position " << positions[i];
        ++compared;
      }
    };
    const auto n = static_cast<int>(tokens.size());
    const auto blocks = take_blocks(n + 1);
    const SlotAdmission admission = {0, tokens, n, blocks, &greedy_};
    const RowSlice slice = {.slot = 0, .num_rows = n, .first_position = 0, .samples = true};
    walk_->step({.admitted = {&admission, 1}, .slices = {&slice, 1}});
    EXPECT_EQ(compared, 5);
  }
}

}  // namespace
}  // namespace manta::backend::testing
