// Sampling on the device against the definition (ref, which calls sample::RowSampler): the same tokens from the same
// logits for every parameter, over steps whose penalties and bad words look back on what was sampled.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "device_access.h"
#include "stage_tensors.h"

namespace manta::backend::testing {
namespace {

constexpr int kSteps = 12, kPrompt = 20, kBlocks = 8, kBlockSize = 16;

ModelShape shape_with(int vocab_size) {
  ModelShape s;
  s.vocab_size = vocab_size;
  s.hidden_size = 64;
  s.num_hidden_layers = 1;
  s.first_k_dense_replace = 1;
  s.intermediate_size = 64;
  s.num_attention_heads = 1;
  s.kv_lora_rank = 128;
  s.qk_nope_head_dim = 32;
  s.qk_rope_head_dim = 32;
  s.v_head_dim = 32;
  s.softmax_scale = 0.1f;
  return s;
}

// A backend that gathers and samples; logits come from the test.
struct Rig {
  Rig(const std::string& name, int vocab_size, int num_seqs, Access a) : access(std::move(a)) {
    auto made = make_backend(name, {.num_threads = 4});
    EXPECT_TRUE(made.ok()) << made.error().message;
    backend = std::move(*made);
    const ModelShape shape = shape_with(vocab_size);
    EXPECT_TRUE(backend
                    ->init(shape, {.max_num_seqs = num_seqs,
                                   .max_num_tokens = num_seqs * kPrompt,
                                   .max_model_len = kBlocks * kBlockSize})
                    .ok());
    EXPECT_TRUE(backend
                    ->make_cache({.num_layers = 1,
                                  .num_blocks = num_seqs * kBlocks,
                                  .block_size = kBlockSize,
                                  .kv_lora_rank = shape.kv_lora_rank,
                                  .qk_rope_head_dim = shape.qk_rope_head_dim,
                                  .dtype = backend->caps().cache_dtype})
                    .ok());
    act = std::move(backend->make_activations()).value();
  }

  StepOutputs step(const StepInputs& inputs, const std::vector<float>& logits) {
    const Status planned = backend->plan(inputs, views);
    EXPECT_TRUE(planned.ok()) << planned.error().message;
    const Tensor to = rows(act->logits, 0, static_cast<int64_t>(logits.size()) / act->logits.shape[1]);
    write_floats(access, to, logits);
    const Status ran = backend->run(nullptr, views, [this](std::span<const StepView> v) {
      backend->gather_inputs(backend->lane(0), v[0]);
      backend->sample(backend->lane(0), v[0], *act);
    });
    EXPECT_TRUE(ran.ok()) << ran.error().message;
    auto out = backend->finish();
    EXPECT_TRUE(out.ok()) << out.error().message;
    return out.ok() ? std::move(*out) : StepOutputs{};
  }

  Access access;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Activations> act;
  std::vector<StepView> views;
};

std::vector<sample::SamplingParams> parameter_list(int vocab_size, std::mt19937& rng) {
  std::vector<sample::SamplingParams> list;
  const auto add = [&](auto&& change) {
    sample::SamplingParams p;
    p.seed = 7919 * (list.size() + 1);
    p.max_tokens = 1000;
    p.eos_token_ids = {1, 2};
    change(p);
    list.push_back(p);
  };
  const auto token = [&] { return static_cast<TokenId>(rng() % vocab_size); };
  add([](auto& p) { p.temperature = 0.0f; });
  add([](auto&) {});
  add([](auto& p) { p.temperature = 0.3f; });
  add([](auto& p) { p.temperature = 1e-6f; });
  for (int k : {1, 2, 50, 1000}) add([k](auto& p) { p.top_k = k; });
  for (float q : {0.01f, 0.5f, 0.9f, 0.999f}) add([q](auto& p) { p.top_p = q; });
  add([](auto& p) { p.min_p = 0.05f; });
  add([](auto& p) { p.top_k = 40, p.top_p = 0.8f, p.min_p = 0.01f, p.temperature = 0.7f; });
  add([](auto& p) { p.repetition_penalty = 1.3f; });
  add([](auto& p) { p.presence_penalty = 1.5f, p.frequency_penalty = 0.7f, p.temperature = 0.0f; });
  add([](auto& p) { p.repetition_penalty = 0.8f, p.frequency_penalty = -0.5f, p.top_p = 0.95f; });
  add([&](auto& p) {
    p.temperature = 0.0f;
    for (int i = 0; i < 40; ++i) p.logit_bias.push_back({token(), i % 2 ? 3.0f : -100.0f});
  });
  add([&](auto& p) {
    for (int i = 0; i < 30; ++i) p.allowed_token_ids.push_back(token());
  });
  add([&](auto& p) {
    p.temperature = 0.0f;
    for (int i = 0; i < 600; ++i) p.bad_words.push_back({token()});  // longer than the inline lists
    for (int i = 0; i < 600; ++i) p.bad_words.push_back({token(), token()});
  });
  add([&](auto& p) {
    p.min_tokens = 8;
    for (int i = 0; i < 20; ++i) p.stop_token_ids.push_back(token());
  });
  add([](auto& p) { p.num_logprobs = 0; });
  add([](auto& p) { p.num_logprobs = 20, p.top_k = 5; });
  return list;
}

struct Comparison {
  int tokens = 0, differing = 0;
};

void expect_same(const StepOutputs& a, const StepOutputs& b, Comparison& c) {
  ASSERT_EQ(a.slices.size(), b.slices.size());
  for (size_t i = 0; i < b.slices.size(); ++i) {
    const auto &x = a.slices[i], &y = b.slices[i];
    EXPECT_EQ(x.error, y.error) << "slot " << y.slot;
    EXPECT_EQ(x.tokens, y.tokens) << "slot " << y.slot;
    c.tokens += static_cast<int>(y.tokens.size());
    c.differing += x.tokens != y.tokens;
    for (const auto& [own, ref] : {std::pair{&x.logprobs, &y.logprobs}, {&x.prompt_logprobs, &y.prompt_logprobs}}) {
      ASSERT_EQ(own->size(), ref->size()) << "slot " << y.slot;
      for (size_t j = 0; j < ref->size(); ++j) {
        EXPECT_EQ((*own)[j].token_ids, (*ref)[j].token_ids);
        EXPECT_EQ((*own)[j].rank, (*ref)[j].rank);
        for (size_t n = 0; n < (*ref)[j].logprobs.size(); ++n) {
          EXPECT_NEAR((*own)[j].logprobs[n], (*ref)[j].logprobs[n], 2e-6) << "slot " << y.slot;
        }
      }
    }
  }
}

class CudaSampling : public ::testing::TestWithParam<int> {};

TEST_P(CudaSampling, TokensAreThoseOfTheDefinition) {
  SKIP_WITHOUT_GPU();
  const int v = GetParam();
  std::mt19937 rng(5);
  const auto params = parameter_list(v, rng);
  const int n = static_cast<int>(params.size());
  Rig own("cuda", v, n, device_access()), ref("ref", v, n, {});
  std::vector<std::vector<TokenId>> prompts(n);
  std::vector<std::vector<BlockId>> blocks(n);
  std::vector<SlotAdmission> admitted;
  std::vector<RowSlice> prefills, decodes;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < kPrompt; ++j) prompts[i].push_back(static_cast<TokenId>(rng() % v));
    for (int j = 0; j < kBlocks; ++j) blocks[i].push_back(i * kBlocks + j);
    admitted.push_back({i, prompts[i], kPrompt, blocks[i], &params[i]});
    prefills.push_back({.slot = i, .num_rows = kPrompt, .first_position = 0, .samples = true});
    decodes.push_back({.slot = i, .num_rows = 1, .max_seq_len = kBlocks * kBlockSize});
  }
  Comparison c;
  std::vector<uint32_t> bitmask((v + 31) / 32);
  for (int step = 0; step < kSteps; ++step) {
    // Rounded to a few levels in every third step: ties everywhere.
    std::vector<float> logits(static_cast<size_t>(n) * v);
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (float& x : logits) x = step % 3 == 2 ? std::round(normal(rng)) : normal(rng);
    if (step == 5) logits[0] = INFINITY;
    for (uint32_t& word : bitmask) word = static_cast<uint32_t>(rng());
    decodes[2].token_bitmask = step % 4 == 1 ? std::span<const uint32_t>(bitmask) : std::span<const uint32_t>();
    StepInputs inputs = {.slices = step == 0 ? prefills : decodes};
    if (step == 0) inputs.admitted = admitted;
    expect_same(own.step(inputs, logits), ref.step(inputs, logits), c);
  }
  printf("vocabulary %d: %d tokens sampled, %d slices differ\n", v, c.tokens, c.differing);
}

INSTANTIATE_TEST_SUITE_P(Vocabulary, CudaSampling, ::testing::Values(1000, 4096, 129280));

TEST(CudaPromptLogprobs, AreThoseOfTheDefinition) {
  SKIP_WITHOUT_GPU();
  constexpr int kVocab = 3000;
  Rig own("cuda", kVocab, 1, device_access()), ref("ref", kVocab, 1, {});
  std::mt19937 rng(3);
  std::vector<TokenId> prompt(kPrompt);
  for (TokenId& t : prompt) t = static_cast<TokenId>(rng() % kVocab);
  const std::vector<BlockId> blocks = {0, 1};
  sample::SamplingParams p;
  p.temperature = 0.0f;
  p.num_prompt_logprobs = 4;
  const SlotAdmission admission = {0, prompt, kPrompt, blocks, &p};
  const RowSlice slice = {
      .slot = 0, .num_rows = kPrompt, .first_position = 0, .samples = true, .prompt_logprobs = true};
  std::vector<float> logits(kPrompt * kVocab);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (float& x : logits) x = normal(rng);
  const StepInputs inputs = {.admitted = {&admission, 1}, .slices = {&slice, 1}};
  Comparison c;
  const StepOutputs a = own.step(inputs, logits), b = ref.step(inputs, logits);
  ASSERT_EQ(b.slices.at(0).prompt_logprobs.size(), kPrompt - 1u);
  expect_same(a, b, c);
}

}  // namespace
}  // namespace manta::backend::testing
