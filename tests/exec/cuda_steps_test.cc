// Steps on a GPU: captured and replayed, or several on the device at once, they give the bits of eager ones one at a
// time.
#include <gtest/gtest.h>

#include <cstring>

#include "backend/cuda_library.h"
#include "eval_prompts.h"
#include "serving.h"

namespace manta::exec {
namespace {

class CudaSteps : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Status usable = backend::probe_cuda(); !usable.ok()) GTEST_SKIP() << usable.error().message;
    options_.model = kTinyModel;
    options_.device = "cuda";
    options_.max_num_seqs = 24;
    options_.max_num_batched_tokens = 512;
    options_.max_model_len = 4096;
    options_.num_blocks = 1024;
    const EvalPrompts prompts;
    for (const EvalPrompt& prompt : prompts.some(48)) {
      sched::Request& request = requests_.emplace_back();
      request.tokens = prompt.tokens;
      request.num_prompt_tokens = static_cast<int>(prompt.tokens.size());
      request.sampling.max_tokens = 40 + static_cast<int>(requests_.size());
      request.sampling.temperature = requests_.size() % 2 == 0 ? 0.0f : 0.8f;
      request.sampling.top_p = requests_.size() % 3 == 0 ? 0.9f : 1.0f;
      request.sampling.seed = requests_.size();
      request.sampling.eos_token_ids = {kEos};
      request.sampling.num_logprobs = 3;
    }
  }

  std::vector<Generated> serve(const LocalExecutorOptions& options, int plans_in_flight) {
    auto executor = make_local_executor(options);
    EXPECT_TRUE(executor.ok()) << executor.error().message;
    return Serving(std::move(executor).value(), false, plans_in_flight).run(requests_);
  }

  static void expect_same_bits(const std::vector<Generated>& a, const std::vector<Generated>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].tokens, b[i].tokens) << "request " << i;
      ASSERT_EQ(a[i].logprobs.size(), b[i].logprobs.size()) << "request " << i;
      for (size_t j = 0; j < a[i].logprobs.size(); ++j) {
        const auto &x = a[i].logprobs[j].logprobs, &y = b[i].logprobs[j].logprobs;
        ASSERT_EQ(x.size(), y.size());
        EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0) << "request " << i << ", token " << j;
      }
    }
  }

  LocalExecutorOptions options_;
  std::vector<sched::Request> requests_;
};

TEST_F(CudaSteps, ReplayedIsEagerBitForBit) {
  LocalExecutorOptions eager = options_;
  eager.capture_steps = false;
  expect_same_bits(serve(options_, 1), serve(eager, 1));
}

TEST_F(CudaSteps, ReplayedIsEagerWithDraftsAndDynamicFp8) {
  options_.num_speculative_tokens = 1;
  options_.backend.fp8_activations = "dynamic";
  LocalExecutorOptions eager = options_;
  eager.capture_steps = false;
  expect_same_bits(serve(options_, 1), serve(eager, 1));
}

// The batch of a step differs by one step's delay, so a row's neighbours do too; the tokens must not.
TEST_F(CudaSteps, AsyncGivesTheSameTokens) {
  const auto sync = serve(options_, 1), async = serve(options_, 2);
  int same = 0;
  for (size_t i = 0; i < sync.size(); ++i) same += sync[i].tokens == async[i].tokens;
  printf("%d of %zu requests have the same tokens\n", same, sync.size());
  EXPECT_GE(same, static_cast<int>(sync.size()) - 2) << "near ties may fall otherwise in bf16";
}

TEST_F(CudaSteps, AModelThatCannotFitIsRefusedWithTheNumbers) {
  options_.num_blocks = 0;
  options_.device_memory_utilization = 0.01;
  const auto executor = make_local_executor(options_);
  ASSERT_FALSE(executor.ok());
  EXPECT_EQ(executor.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(executor.error().message.find("--gpu-memory-utilization"), std::string::npos) << executor.error().message;
}

}  // namespace
}  // namespace manta::exec
