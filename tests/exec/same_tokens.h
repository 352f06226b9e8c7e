// Requests whose answers show every bit of the logits that decided, and the comparison of two runs of them.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "eval_prompts.h"
#include "serving.h"

namespace manta::exec {

inline std::string bits(const std::vector<sample::TokenLogprobs>& rows) {
  std::string out;
  for (const auto& row : rows) {
    out.append(reinterpret_cast<const char*>(row.token_ids.data()), row.token_ids.size() * sizeof(TokenId));
    out.append(reinterpret_cast<const char*>(row.logprobs.data()), row.logprobs.size() * sizeof(float));
    out.append(reinterpret_cast<const char*>(&row.rank), sizeof(row.rank));
  }
  return out;
}

// Half greedy, half sampled; the logprobs show every bit of the logits that decided.
inline std::vector<sched::Request> make_requests(const std::vector<EvalPrompt>& prompts, int max_tokens) {
  std::vector<sched::Request> out;
  for (size_t i = 0; i < prompts.size(); ++i) {
    sched::Request& request = out.emplace_back();
    request.tokens = prompts[i].tokens;
    request.num_prompt_tokens = static_cast<int>(request.tokens.size());
    request.sampling.max_tokens = max_tokens;
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    request.sampling.seed = 1000 + i;
    request.sampling.eos_token_ids = {kEos};
    request.sampling.num_logprobs = 3;
    if (i % 4 == 3) request.sampling.frequency_penalty = 0.5f;
  }
  return out;
}

struct Scale {
  std::string device;
  int num_prompts;
  int max_tokens;
  friend void PrintTo(const Scale& s, std::ostream* out) { *out << s.device; }
};

// Tokens, finish reasons and logprobs, bit for bit.
inline void expect_same(const std::vector<Generated>& got, const std::vector<Generated>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].tokens, expected[i].tokens) << "request " << i;
    EXPECT_EQ(got[i].finish, expected[i].finish) << "request " << i;
    EXPECT_EQ(bits(got[i].logprobs), bits(expected[i].logprobs)) << "logprobs of request " << i;
  }
}

}  // namespace manta::exec
