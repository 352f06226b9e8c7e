// The host half of a step on a CPU backend: slots, views, microbatches, verification, results. The model is a table of
// logits that the test writes; what is tested is everything around it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <limits>

#include "backend/host/host_backend.h"

namespace manta::backend::host {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kVocab = 40, kBlock = 4, kK = 1;

ModelShape small_shape() {
  ModelShape s;
  s.vocab_size = kVocab;
  s.hidden_size = 8;
  s.num_hidden_layers = 1;
  s.num_mtp_layers = 1;
  s.num_attention_heads = 1;
  s.kv_lora_rank = 4;
  s.qk_nope_head_dim = 2;
  s.qk_rope_head_dim = 2;
  s.v_head_dim = 2;
  return s;
}

Limits small_limits() {
  return {.max_num_seqs = 4,
          .max_num_tokens = 32,
          .max_model_len = 22,
          .num_speculative_tokens = kK,
          .num_microbatches = 2};
}

// A backend without a model.
class TableBackend : public HostBackend {
 public:
  TableBackend() : HostBackend(2) {}
  const Caps& caps() const override { return caps_; }
  Result<PackedWeightPtr> pack(const WeightView&, WeightRole) override { return PackedWeightPtr(); }
  Result<std::unique_ptr<Activations>> make_activations() override {
    auto act = std::make_unique<HostActivations>();
    MANTA_TRY(act->allocate(shape(), limits(), DType::kF32, DType::kF32));
    return std::unique_ptr<Activations>(std::move(act));
  }
  void embed(Lane&, const StepView&, const PackedWeight&, Hidden&) override {}
  void attn_project(Lane&, const StepView&, const AttnWeights&, Hidden&, KvLayer&, Activations&) override {}
  void attn_attend(Lane&, const StepView&, const AttnWeights&, const KvLayer&, Activations&, Hidden&) override {}
  void dense_mlp(Lane&, const StepView&, const PackedWeight&, const MlpWeights&, Activations&, Hidden&) override {}
  void route(Lane&, const StepView&, int, const PackedWeight&, const GateWeights&, const ep::ExpertMap&, Activations&,
             Hidden&) override {}
  void shared_expert(Lane&, const StepView&, const MlpWeights&, Activations&) override {}
  void experts(Lane&, const ExpertWeights&, ep::ExpertBatch&) override {}
  void merge(Lane&, const StepView&, const Activations&, Hidden&) override {}
  void head(Lane&, const StepView&, const HeadWeights&, Activations&, Hidden&) override {}
  void mtp_input(Lane&, const StepView&, const PackedWeight&, const MtpWeights&, Activations&) override {}
  void mtp_draft(Lane&, const StepView&, const PackedWeight&, const HeadWeights&, Activations&) override {}
  using HostBackend::count_expert_load;
  using HostBackend::fault;
  using HostBackend::next_token;
  using HostBackend::store_drafts;

 protected:
  Status on_init() override { return {}; }
  size_t derived_bytes() const override { return 0; }

 private:
  Caps caps_;
};

std::vector<int32_t> ints(const Tensor& t, int n) {
  return {t.as<int32_t>(), t.as<int32_t>() + n};
}

// Logits whose argmax is `token`.
void point_at(const Tensor& logits, int row, TokenId token) {
  std::fill_n(logits.as<float>() + row * kVocab, kVocab, 0.0f);
  logits.as<float>()[row * kVocab + token] = 5.0f;
}

class HostStep : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(backend_.init(small_shape(), small_limits()).ok());
    ASSERT_TRUE(backend_
                    .make_cache({.num_layers = 2,
                                 .num_blocks = 16,
                                 .block_size = kBlock,
                                 .kv_lora_rank = 4,
                                 .qk_rope_head_dim = 2,
                                 .dtype = DType::kF32})
                    .ok());
    act_ = std::move(backend_.make_activations()).value();
    greedy_.temperature = 0.0f;
  }

  SlotAdmission admit(SlotId slot, const std::vector<TokenId>& tokens, const std::vector<BlockId>& blocks) {
    const auto& kept = kept_.emplace_back(tokens, blocks);  // an admission holds views
    return {slot, kept.first, static_cast<int>(tokens.size()), kept.second, &greedy_};
  }

  Status plan(const StepInputs& inputs) { return backend_.plan(inputs, views_); }

  std::string plan_error(const StepInputs& inputs) {
    const Status status = plan(inputs);
    return status.ok() ? "accepted" : status.error().message;
  }

  // Runs gather and sample with the argmax of logit row i being targets[i].
  StepOutputs run(const std::vector<TokenId>& targets) {
    EXPECT_TRUE(backend_
                    .run(nullptr, views_,
                         [&](std::span<const StepView> views) {
                           size_t next = 0;
                           for (const StepView& view : views) {
                             Lane& lane = backend_.lane(view.microbatch);
                             backend_.gather_inputs(lane, view);
                             for (int i = 0; i < view.num_logit_rows; ++i)
                               point_at(act_->logits, i, targets.at(next++));
                             backend_.sample(lane, view, *act_);
                           }
                         })
                    .ok());
    auto out = backend_.finish();
    EXPECT_TRUE(out.ok());
    return out.ok() ? std::move(*out) : StepOutputs{};
  }

  // Gives the slots that sampled in microbatch 0 these drafts.
  void draft(const std::vector<TokenId>& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) point_at(act_->logits, static_cast<int>(i), tokens[i]);
    backend_.store_drafts(views_[0], act_->logits);
  }

  void prefill(SlotId slot, const std::vector<TokenId>& tokens, const std::vector<BlockId>& blocks, TokenId sampled,
               TokenId drafted) {
    const SlotAdmission a = admit(slot, tokens, blocks);
    const RowSlice s = {
        .slot = slot, .num_rows = static_cast<int>(tokens.size()), .first_position = 0, .samples = true};
    const StepInputs inputs = {.admitted = {&a, 1}, .slices = {&s, 1}};
    ASSERT_EQ(plan_error(inputs), "accepted");
    run({sampled});
    draft({drafted});
  }

  TableBackend backend_;
  std::unique_ptr<Activations> act_;
  std::vector<StepView> views_;
  sample::SamplingParams greedy_;
  std::deque<std::pair<std::vector<TokenId>, std::vector<BlockId>>> kept_;
};

TEST_F(HostStep, PrefillViewHoldsTheSliceAndItsCacheRows) {
  const SlotAdmission a = admit(2, {10, 11, 12, 13, 14, 15}, {7, 3});
  const RowSlice s = {.slot = 2, .num_rows = 3, .first_position = 2};
  const StepInputs inputs = {.admitted = {&a, 1}, .slices = {&s, 1}, .padded_num_tokens = 5};
  ASSERT_EQ(plan_error(inputs), "accepted");
  const StepView& v = views_[0];
  backend_.gather_inputs(backend_.lane(0), v);
  EXPECT_EQ(v.num_tokens, 5);
  EXPECT_EQ(v.num_reqs, 1);
  EXPECT_EQ(v.num_logit_rows, 0);
  EXPECT_EQ(v.sample.num_slices, 0);
  EXPECT_THAT(ints(v.token_ids, 5), ElementsAre(12, 13, 14, 0, 0));
  EXPECT_THAT(ints(v.next_token_ids, 5), ElementsAre(13, 14, 15, -1, -1));
  EXPECT_THAT(ints(v.positions, 5), ElementsAre(2, 3, 4, -1, -1));
  EXPECT_THAT(ints(v.row_req, 5), ElementsAre(0, 0, 0, -1, -1));
  EXPECT_THAT(ints(v.cu_rows, 2), ElementsAre(0, 3));
  EXPECT_THAT(std::vector<int64_t>(v.slot_mapping.as<int64_t>(), v.slot_mapping.as<int64_t>() + 5),
              ElementsAre(7 * kBlock + 2, 7 * kBlock + 3, 3 * kBlock, -1, -1));
  EXPECT_EQ(v.max_seq_len, 5);
  EXPECT_THAT(run({}).slices, IsEmpty());
}

TEST_F(HostStep, AcceptedDraftMovesTheSlotByTwo) {
  prefill(1, {5, 6, 7}, {0, 1}, 8, 9);
  const RowSlice s = {.slot = 1, .num_rows = 2, .max_seq_len = 6};
  ASSERT_EQ(plan_error({.slices = {&s, 1}}), "accepted");
  const StepOutputs out = run({9, 20});
  EXPECT_THAT(ints(views_[0].token_ids, 2), ElementsAre(8, 9));
  EXPECT_THAT(ints(views_[0].positions, 2), ElementsAre(3, 4));
  ASSERT_EQ(out.slices.size(), 1u);
  EXPECT_THAT(out.slices[0].tokens, ElementsAre(9, 20));
  EXPECT_THAT(ints(views_[0].sample.tokens, 2), ElementsAre(9, 20));
  EXPECT_THAT(ints(views_[0].sample.num_accepted, 1), ElementsAre(2));
  EXPECT_THAT(ints(views_[0].sample.draft_row, 1), ElementsAre(1));
  EXPECT_EQ(TableBackend::next_token(views_[0], 0), 9);
  EXPECT_EQ(TableBackend::next_token(views_[0], 1), 20);

  draft({30});
  ASSERT_EQ(plan_error({.slices = {&s, 1}}), "accepted");  // max_seq_len 6: the slot is at 6, only row 0 is live
  backend_.gather_inputs(backend_.lane(0), views_[0]);
  EXPECT_THAT(ints(views_[0].token_ids, 2), ElementsAre(20, 0));
  EXPECT_THAT(ints(views_[0].positions, 2), ElementsAre(5, -1));
}

TEST_F(HostStep, RejectedDraftIsOverwrittenByTheNextStep) {
  prefill(1, {5, 6, 7}, {0, 1}, 8, 9);
  const RowSlice s = {.slot = 1, .num_rows = 2, .max_seq_len = 8};
  ASSERT_EQ(plan_error({.slices = {&s, 1}}), "accepted");
  const StepOutputs out = run({10, 20});
  EXPECT_THAT(out.slices[0].tokens, ElementsAre(10));
  EXPECT_THAT(ints(views_[0].sample.draft_row, 1), ElementsAre(0));
  EXPECT_EQ(TableBackend::next_token(views_[0], 1), 0);  // the rejected row has no next token
  draft({11});
  ASSERT_EQ(plan_error({.slices = {&s, 1}}), "accepted");
  run({11, 12});
  EXPECT_THAT(ints(views_[0].token_ids, 2), ElementsAre(10, 11));
  EXPECT_THAT(ints(views_[0].positions, 2), ElementsAre(4, 5));
}

TEST_F(HostStep, ARowWithoutADraftIsDead) {
  prefill(1, {5, 6, 7}, {0, 1}, 8, 9);
  const RowSlice one = {.slot = 1, .num_rows = 1, .max_seq_len = 8};
  ASSERT_EQ(plan_error({.slices = {&one, 1}}), "accepted");
  run({10});  // the driver makes no draft this time
  const RowSlice two = {.slot = 1, .num_rows = 2, .max_seq_len = 8};
  ASSERT_EQ(plan_error({.slices = {&two, 1}}), "accepted");
  const StepOutputs out = run({0, 21});  // 0 is the dead row's token id: must not count as a match
  EXPECT_THAT(ints(views_[0].positions, 2), ElementsAre(4, -1));
  EXPECT_THAT(out.slices[0].tokens, ElementsAre(0));
}

TEST_F(HostStep, ASlotPastItsEndProducesNothing) {
  prefill(1, {5, 6, 7}, {0, 1}, 8, 9);
  const RowSlice s = {.slot = 1, .num_rows = 2, .max_seq_len = 3};  // planned before the host knew
  ASSERT_EQ(plan_error({.slices = {&s, 1}}), "accepted");
  const StepOutputs out = run({9, 10});
  ASSERT_EQ(out.slices.size(), 1u);
  EXPECT_THAT(out.slices[0].tokens, IsEmpty());
  EXPECT_EQ(out.slices[0].error, "");
}

TEST_F(HostStep, MicrobatchesCutPrefillsButNeverADecodeSlice) {
  prefill(0, {1, 2, 3}, {0}, 4, 5);
  prefill(1, {1, 2, 3}, {1}, 4, 5);
  const SlotAdmission a = admit(2, {10, 11, 12, 13, 14}, {2, 3});
  const RowSlice slices[] = {{.slot = 0, .num_rows = 2, .max_seq_len = 6, .new_blocks = {}},
                             {.slot = 2, .num_rows = 5, .first_position = 0, .samples = true},
                             {.slot = 1, .num_rows = 2, .max_seq_len = 6}};
  const BlockId more[] = {5, 6};
  auto with_blocks = std::vector<RowSlice>(std::begin(slices), std::end(slices));
  with_blocks[0].new_blocks = {&more[0], 1};
  with_blocks[2].new_blocks = {&more[1], 1};
  ASSERT_EQ(plan_error({.admitted = {&a, 1}, .slices = with_blocks, .padded_num_tokens = 6, .num_microbatches = 2}),
            "accepted");
  ASSERT_EQ(views_.size(), 2u);
  EXPECT_EQ(views_[0].num_tokens, 6);
  EXPECT_EQ(views_[1].num_tokens, 6);
  EXPECT_THAT(ints(views_[0].slots, 2), ElementsAre(0, 2));
  EXPECT_THAT(ints(views_[1].slots, 2), ElementsAre(2, 1));
  EXPECT_THAT(ints(views_[0].cu_rows, 3), ElementsAre(0, 2, 4));
  EXPECT_THAT(ints(views_[1].cu_rows, 3), ElementsAre(0, 3, 5));
  EXPECT_EQ(views_[0].sample.num_slices, 1);  // the prefill samples where its last row is
  EXPECT_EQ(views_[1].sample.num_slices, 2);
  const StepOutputs out = run({5, 6, 30, 9, 7});
  EXPECT_THAT(ints(views_[1].positions, 6), ElementsAre(2, 3, 4, 3, 4, -1));
  ASSERT_EQ(out.slices.size(), 3u);
  EXPECT_THAT(out.slices[0].tokens, ElementsAre(5, 6));
  EXPECT_THAT(out.slices[1].tokens, ElementsAre(30));
  EXPECT_THAT(out.slices[2].tokens, ElementsAre(9));

  // Two decode slices of two rows in microbatches of at most three: the cut stands between them.
  auto again = with_blocks;
  again.erase(again.begin() + 1);
  for (auto& s : again) s.new_blocks = {}, s.max_seq_len = 8;
  ASSERT_EQ(plan_error({.slices = again, .padded_num_tokens = 3, .num_microbatches = 2}), "accepted");
  EXPECT_THAT(ints(views_[0].cu_rows, 2), ElementsAre(0, 2));
  run({1, 1, 1, 1});
  // One slice of two rows cannot fill microbatches of one.
  again.pop_back();
  EXPECT_THAT(plan_error({.slices = again, .padded_num_tokens = 1, .num_microbatches = 2}),
              HasSubstr("without cutting a decode slice"));
}

TEST_F(HostStep, DummyStepHasOnlyPadding) {
  ASSERT_EQ(plan_error({.padded_num_tokens = 8, .num_microbatches = 2}), "accepted");
  for (const StepView& v : views_) {
    EXPECT_EQ(v.num_tokens, 8);
    EXPECT_EQ(v.num_reqs, 0);
    EXPECT_THAT(ints(v.positions, 8), ::testing::Each(-1));
  }
  EXPECT_THAT(run({}).slices, IsEmpty());
  ASSERT_EQ(plan_error({}), "accepted");  // nothing at all
  EXPECT_EQ(views_[0].num_tokens, 0);
  EXPECT_THAT(run({}).slices, IsEmpty());
}

TEST_F(HostStep, BitmaskRowsOfOthersAreAllOnes) {
  prefill(0, {1, 2}, {0}, 4, 5);
  prefill(3, {1, 2}, {1}, 4, 5);
  const std::vector<uint32_t> bitmask = {1u << 17, 0};
  const RowSlice slices[] = {{.slot = 0, .num_rows = 1, .max_seq_len = 4},
                             {.slot = 3, .num_rows = 1, .max_seq_len = 4, .token_bitmask = bitmask}};
  ASSERT_EQ(plan_error({.slices = slices}), "accepted");
  EXPECT_TRUE(views_[0].sample.has_bitmask);
  EXPECT_THAT(ints(views_[0].sample.token_bitmask, 4), ElementsAre(-1, -1, 1 << 17, 0));
  const StepOutputs out = run({30, 30});
  EXPECT_THAT(out.slices[0].tokens, ElementsAre(30));
  EXPECT_THAT(out.slices[1].tokens, ElementsAre(17));
  const RowSlice two = {.slot = 3, .num_rows = 2, .max_seq_len = 4, .token_bitmask = bitmask};
  EXPECT_THAT(plan_error({.slices = {&two, 1}}), HasSubstr("one-row decode slice"));
}

TEST_F(HostStep, LogprobsOfPromptAndOutput) {
  greedy_.num_logprobs = 2;
  greedy_.num_prompt_logprobs = 1;
  const SlotAdmission a = admit(0, {10, 11, 12, 13}, {0});
  const RowSlice s = {.slot = 0, .num_rows = 4, .first_position = 0, .samples = true, .prompt_logprobs = true};
  ASSERT_EQ(plan_error({.admitted = {&a, 1}, .slices = {&s, 1}, .num_microbatches = 2}), "accepted");
  const StepOutputs out = run({11, 20, 13, 30});
  const auto& slice = out.slices.at(0);
  ASSERT_EQ(slice.prompt_logprobs.size(), 3u);  // of tokens 1, 2, 3, gathered over both microbatches
  EXPECT_THAT(slice.prompt_logprobs[0].token_ids, ElementsAre(11, 11));
  EXPECT_EQ(slice.prompt_logprobs[0].rank, 1);
  EXPECT_THAT(slice.prompt_logprobs[1].token_ids, ElementsAre(12, 20));
  EXPECT_EQ(slice.prompt_logprobs[1].rank, 2);
  EXPECT_THAT(slice.prompt_logprobs[2].token_ids, ElementsAre(13, 13));
  ASSERT_EQ(slice.logprobs.size(), 1u);
  EXPECT_THAT(slice.logprobs[0].token_ids, ElementsAre(30, 30, 0));
}

TEST_F(HostStep, NaNLogitsEndOneRequestOnly) {
  prefill(0, {1, 2}, {0}, 4, 5);
  prefill(1, {1, 2}, {1}, 4, 5);
  const RowSlice slices[] = {{.slot = 0, .num_rows = 2, .max_seq_len = 5},
                             {.slot = 1, .num_rows = 2, .max_seq_len = 5}};
  ASSERT_EQ(plan_error({.slices = slices}), "accepted");
  backend_.gather_inputs(backend_.lane(0), views_[0]);
  for (int i = 0; i < 4; ++i) point_at(act_->logits, i, 5);
  act_->logits.as<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  backend_.sample(backend_.lane(0), views_[0], *act_);
  const auto out = backend_.finish();
  ASSERT_TRUE(out.ok());
  EXPECT_THAT(out->slices[0].error, HasSubstr("token 3 of the sequence: the model's logits hold a NaN"));
  EXPECT_THAT(out->slices[0].tokens, IsEmpty());
  EXPECT_THAT(out->slices[1].tokens, ElementsAre(5, 5));
}

TEST_F(HostStep, ReleasedSlotsForgetEverything) {
  prefill(0, {1, 2, 3}, {0, 1, 2}, 4, 5);
  const SlotId released[] = {0};
  const SlotAdmission a = admit(0, {9}, {3});
  const RowSlice s = {.slot = 0, .num_rows = 2, .max_seq_len = 4};
  ASSERT_EQ(plan_error({.released = released, .admitted = {&a, 1}, .slices = {&s, 1}}), "accepted");
  run({7, 8});
  EXPECT_THAT(ints(views_[0].token_ids, 2), ElementsAre(9, 0));
  EXPECT_THAT(ints(views_[0].positions, 2), ElementsAre(0, -1));
  EXPECT_EQ(views_[0].slot_mapping.as<int64_t>()[0], 3 * kBlock);
}

TEST_F(HostStep, BadPlansAreRefusedWithValueAndBoundAndChangeNothing) {
  prefill(0, {1, 2, 3}, {0}, 4, 5);
  const SlotId free_slot[] = {2}, far_slot[] = {4};
  EXPECT_THAT(plan_error({.released = free_slot}), HasSubstr("slot 2 is released but holds no request"));
  EXPECT_THAT(plan_error({.released = far_slot}), HasSubstr("slot 4: must be in [0, 4)"));
  const auto admission_error = [&](SlotAdmission a) { return plan_error({.admitted = {&a, 1}}); };
  EXPECT_THAT(admission_error(admit(-1, {1}, {})), HasSubstr("slot -1: must be in [0, 4)"));
  EXPECT_THAT(admission_error(admit(0, {1}, {})), HasSubstr("slot 0 is admitted but taken"));
  EXPECT_THAT(admission_error(admit(1, {}, {})), HasSubstr("0 tokens: must be in [1, 22]"));
  EXPECT_THAT(admission_error(admit(1, std::vector<TokenId>(23, 1), {})), HasSubstr("23 tokens"));
  EXPECT_THAT(admission_error(admit(1, {1, kVocab}, {})), HasSubstr("token 40: must be in [0, 40)"));
  EXPECT_THAT(admission_error(admit(1, {1}, {16})), HasSubstr("block 16: must be in [0, 16)"));
  EXPECT_THAT(admission_error(admit(1, {1}, {1, 2, 3, 4, 5, 6, 7})), HasSubstr("7 blocks: at most 6"));
  EXPECT_THAT(admission_error({1, {}, 0, {}, nullptr}), HasSubstr("0 tokens"));
  sample::SamplingParams bad = greedy_;
  bad.top_p = 7;
  SlotAdmission a = admit(1, {1}, {1});
  a.sampling = &bad;
  EXPECT_THAT(admission_error(a), HasSubstr("slot 1: top_p 7"));
  a.sampling = nullptr;
  EXPECT_THAT(admission_error(a), HasSubstr("without sampling parameters"));

  const auto slice_error = [&](RowSlice s) { return plan_error({.slices = {&s, 1}}); };
  EXPECT_THAT(slice_error({.slot = 9, .num_rows = 1}), HasSubstr("slot 9: must be in [0, 4)"));
  EXPECT_THAT(slice_error({.slot = 1, .num_rows = 1}), HasSubstr("slot 1 has rows but holds no request"));
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 0, .first_position = 0}), HasSubstr("0 rows, must be in [1, 32]"));
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 5, .first_position = 0}), HasSubstr("only 4 are known"));
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 2, .first_position = 0, .samples = true}),
              HasSubstr("ends at token 2 cannot sample, 4 are known"));
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 3, .max_seq_len = 8}), HasSubstr("3 decode rows, at most 2"));
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 1, .max_seq_len = 23}),
              HasSubstr("max_seq_len 23 must be in [1, 22]"));
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 2, .max_seq_len = 8}), HasSubstr("up to 5, but its blocks hold 4"));
  const BlockId far_block[] = {-1};
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 1, .max_seq_len = 8, .new_blocks = far_block}),
              HasSubstr("block -1: must be in [0, 16)"));
  const uint32_t short_mask[] = {1};
  EXPECT_THAT(slice_error({.slot = 0, .num_rows = 1, .max_seq_len = 8, .token_bitmask = short_mask}),
              HasSubstr("1 words, must be 2"));
  const RowSlice twice[] = {{.slot = 0, .num_rows = 1, .max_seq_len = 8}, {.slot = 0, .num_rows = 1, .max_seq_len = 8}};
  EXPECT_THAT(plan_error({.slices = twice}), HasSubstr("slot 0 has two slices"));
  EXPECT_THAT(plan_error({.num_microbatches = 3}), HasSubstr("3 microbatches: must be in [1, 2]"));
  EXPECT_THAT(plan_error({.padded_num_tokens = 33}), HasSubstr("padded_num_tokens 33"));

  const RowSlice good = {.slot = 0, .num_rows = 1, .max_seq_len = 8};
  ASSERT_EQ(plan_error({.slices = {&good, 1}}), "accepted");
  EXPECT_THAT(plan_error({.slices = {&good, 1}}), HasSubstr("finish() it first"));
  EXPECT_THAT(run({6}).slices[0].tokens, ElementsAre(6));
}

TEST_F(HostStep, FinishReportsFaultsAndForgottenSampling) {
  EXPECT_EQ(backend_.finish().error().code, ErrorCode::kFailedPrecondition);
  prefill(0, {1, 2, 3}, {0}, 4, 5);
  const RowSlice s = {.slot = 0, .num_rows = 1, .max_seq_len = 8};
  ASSERT_TRUE(plan({.slices = {&s, 1}}).ok());
  EXPECT_THAT(backend_.finish().error().message, HasSubstr("slot 0 should have sampled"));
  ASSERT_TRUE(plan({}).ok());
  backend_.fault(error(ErrorCode::kInternal, "first"));
  backend_.fault(error(ErrorCode::kInternal, "second"));
  EXPECT_EQ(backend_.finish().error().message, "first");
  ASSERT_TRUE(plan({}).ok());
  EXPECT_TRUE(backend_.finish().ok());
}

TEST_F(HostStep, ExpertLoadCountsWhatWasRoutedAndStartsAnewEachStep) {
  std::vector<int32_t> ids = {0, 2, 2, 1, -1, -1};
  const Tensor topk_id = make_tensor(ids.data(), DType::kI32, {3, 2});
  for (int step = 0; step < 2; ++step) {
    ASSERT_TRUE(plan({.padded_num_tokens = 3}).ok());
    backend_.count_expert_load(1, 4, views_[0], topk_id);
    const auto out = backend_.finish();
    ASSERT_EQ(out->expert_load.size(), 2u);
    EXPECT_THAT(out->expert_load[0].tokens, ElementsAre(0, 0, 0, 0));
    EXPECT_EQ(out->expert_load[1].layer, 1);
    EXPECT_THAT(out->expert_load[1].tokens, ElementsAre(1, 1, 2, 0));
  }
}

TEST_F(HostStep, ALaneRunsHostWorkOnTheTeam) {
  std::vector<int> hits(100, 0);
  backend_.lane(1).parallel_for(100, 7, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++hits[i];
  });
  EXPECT_THAT(hits, ::testing::Each(1));
}

TEST(HostInit, RefusesWhatItCannotDo) {
  TableBackend backend;
  Limits limits = small_limits();
  limits.num_speculative_tokens = 2;
  EXPECT_THAT(backend.init(small_shape(), limits).error().message,
              HasSubstr("num_speculative_tokens 2: must be in [0, 1]"));
  limits = small_limits();
  limits.max_num_seqs = 0;
  EXPECT_THAT(backend.init(small_shape(), limits).error().message, HasSubstr("max_num_seqs 0"));
  ModelShape shape = small_shape();
  shape.qk_rope_head_dim = 3;
  EXPECT_THAT(backend.init(shape, small_limits()).error().message, HasSubstr("qk_rope_head_dim 3: must be even"));
  shape = small_shape();
  shape.n_routed_experts = 8;
  shape.num_experts_per_tok = 9;
  EXPECT_THAT(backend.init(shape, small_limits()).error().message, HasSubstr("num_experts_per_tok 9"));
  EXPECT_EQ(backend.make_cache({}).error().code, ErrorCode::kFailedPrecondition);
  ASSERT_TRUE(backend.init(small_shape(), small_limits()).ok());
  EXPECT_THAT(backend.make_cache({.num_layers = 1, .num_blocks = 4, .dtype = DType::kF32}).error().message,
              HasSubstr("needs 2, 4 + 2 F32"));
  std::vector<StepView> views;
  EXPECT_THAT(backend.plan({}, views).error().message, HasSubstr("before make_cache"));
}

}  // namespace
}  // namespace manta::backend::host
