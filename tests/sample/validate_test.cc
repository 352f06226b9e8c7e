#include "sample/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace manta::sample {
namespace {

using ::testing::HasSubstr;

TEST(Validate, DefaultsAreFine) {
  EXPECT_TRUE(validate({}, 100).ok());
}

TEST(Validate, EveryRangeNamesValueAndBound) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    std::function<void(SamplingParams&)> spoil;
    const char* message;
  };
  const Case cases[] = {
      {[](auto& p) { p.temperature = -0.5f; }, "temperature -0.5"},
      {[=](auto& p) { p.temperature = nan; }, "temperature nan"},
      {[](auto& p) { p.top_p = 0.0f; }, "top_p 0: must be in (0, 1]"},
      {[](auto& p) { p.top_p = 1.5f; }, "top_p 1.5: must be in (0, 1]"},
      {[](auto& p) { p.top_k = -1; }, "top_k -1"},
      {[](auto& p) { p.min_p = 2.0f; }, "min_p 2: must be in [0, 1]"},
      {[](auto& p) { p.presence_penalty = 3.0f; }, "presence_penalty 3: must be in [-2, 2]"},
      {[=](auto& p) { p.frequency_penalty = nan; }, "frequency_penalty nan"},
      {[](auto& p) { p.repetition_penalty = 0.0f; }, "repetition_penalty 0"},
      {[](auto& p) {
         p.logit_bias = {{100, 1.0f}};
       },
       "token id 100: must be in [0, 100)"},
      {[](auto& p) {
         p.logit_bias = {{1, 101.0f}};
       },
       "logit_bias 101: must be in [-100, 100]"},
      {[](auto& p) { p.allowed_token_ids = {-1}; }, "allowed_token_ids holds token id -1"},
      {[](auto& p) {
         p.bad_words = {{5, 100}};
       },
       "bad_words holds token id 100"},
      {[](auto& p) { p.bad_words = {{}}; }, "bad_words holds a word without tokens"},
      {[](auto& p) { p.eos_token_ids = {100}; }, "eos_token_ids"},
      {[](auto& p) { p.stop_token_ids = {-5}; }, "stop_token_ids"},
      {[](auto& p) { p.max_tokens = 0; }, "max_tokens 0"},
      {[](auto& p) { p.min_tokens = 17; }, "min_tokens 17: must be in [0, max_tokens 16]"},
      {[](auto& p) { p.num_logprobs = -2; }, "logprobs -2"},
      {[](auto& p) { p.num_prompt_logprobs = -2; }, "prompt_logprobs -2"},
  };
  for (const Case& c : cases) {
    SamplingParams p;
    c.spoil(p);
    const Status status = validate(p, 100);
    ASSERT_FALSE(status.ok()) << c.message;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message, HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace manta::sample
