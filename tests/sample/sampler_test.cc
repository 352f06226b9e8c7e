// What each sampling parameter does to a row, one at a time and in order. Distributions are in distribution_test.cc.
#include "sample/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "sample/philox.h"

namespace manta::sample {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Row {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<TokenId> tokens;
  int num_prompt_tokens = 0;
  std::vector<uint32_t> bitmask;

  RowChoice choose() const {
    RowSampler sampler(static_cast<int>(logits.size()));
    return choose(sampler);
  }
  RowChoice choose(RowSampler& sampler) const {
    return sampler.choose({logits, &params, tokens, num_prompt_tokens, bitmask});
  }
};

Row greedy_row(std::vector<float> logits) {
  Row row{.logits = std::move(logits)};
  row.params.temperature = 0.0f;
  return row;
}

std::vector<float> random_logits(int n, uint32_t seed, float spread = 3.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

TEST(Greedy, LowestIdWinsATie) {
  EXPECT_EQ(greedy_row({1, 5, 2, 5, 5}).choose().token, 1);
  EXPECT_EQ(greedy_row({-3, -3}).choose().token, 0);
}

TEST(Faults, NotFiniteLogitsAreReportedAndNeverChosen) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf, -kInf}) {
    for (float temperature : {0.0f, 1.0f}) {
      Row row{.logits = {1, bad, 2}};
      row.params.temperature = temperature;
      row.params.top_p = 0.5f;
      EXPECT_EQ(row.choose().token, -1);
      EXPECT_EQ(row.choose().fault, RowFault::kNotFinite);
    }
  }
  EXPECT_THAT(to_string(RowFault::kNotFinite), HasSubstr("NaN"));
}

TEST(Faults, NothingAllowed) {
  Row row = greedy_row({1, 2, 3});
  row.params.allowed_token_ids = {0};
  row.params.bad_words = {{0}};
  EXPECT_EQ(row.choose().fault, RowFault::kNothingAllowed);
  row.params.temperature = 1.0f;
  EXPECT_EQ(row.choose().fault, RowFault::kNothingAllowed);
  EXPECT_EQ(row.choose().token, -1);
}

TEST(Faults, ScratchIsCleanAfterAFault) {
  RowSampler sampler(4);
  Row bad = greedy_row({1, 2, 3, 4});
  bad.params.allowed_token_ids = {1};
  bad.bitmask = {0b1101};
  EXPECT_EQ(bad.choose(sampler).fault, RowFault::kNothingAllowed);
  Row good = greedy_row({1, 2, 3, 4});
  good.params.allowed_token_ids = {0, 2};
  EXPECT_EQ(good.choose(sampler).token, 2);
}

TEST(Masks, Bitmask) {
  Row row = greedy_row(std::vector<float>(40, 1.0f));
  row.logits[5] = 9;
  row.bitmask = {1u << 7, 1u << 1};  // tokens 7 and 33
  row.logits[33] = 2;
  EXPECT_EQ(row.choose().token, 33);
}

TEST(Masks, AllowedTokenIds) {
  Row row = greedy_row({9, 1, 2, 8});
  row.params.allowed_token_ids = {2, 1, 2};
  EXPECT_EQ(row.choose().token, 2);
}

TEST(Masks, BadWordsForbidOnlyTheirLastTokenAfterTheRestOfTheOutput) {
  Row row = greedy_row({0, 1, 2, 3});
  row.params.bad_words = {{1, 2, 3}};
  EXPECT_EQ(row.choose().token, 3);
  row.tokens = {1, 2};
  EXPECT_EQ(row.choose().token, 2);
  row.tokens = {0, 1, 2};
  EXPECT_EQ(row.choose().token, 2);
  row.num_prompt_tokens = 2;  // as in vLLM, the prompt does not count
  EXPECT_EQ(row.choose().token, 3);
  row.params.bad_words = {{3}};
  EXPECT_EQ(row.choose().token, 2);
}

TEST(Masks, MinTokensHoldsBackEndAndStopTokens) {
  Row row = greedy_row({0, 5, 4, 3});
  row.params.eos_token_ids = {1};
  row.params.stop_token_ids = {2};
  row.params.min_tokens = 2;
  row.tokens = {0, 0, 0};
  row.num_prompt_tokens = 2;
  EXPECT_EQ(row.choose().token, 3);
  row.num_prompt_tokens = 1;  // two tokens of output: reached
  EXPECT_EQ(row.choose().token, 1);
  row.num_prompt_tokens = 2;
  row.params.ignore_eos = true;  // then the end token is an ordinary one
  EXPECT_EQ(row.choose().token, 1);
}

TEST(Bias, AddsBeforePenalties) {
  Row row = greedy_row({1, 2, 3});
  row.params.logit_bias = {{0, 2.5f}};
  EXPECT_EQ(row.choose().token, 0);
  row.params.repetition_penalty = 2.0f;  // 3.5 / 2 < 2; the other order, 1 / 2 + 2.5, would still win
  row.tokens = {0, 2};
  row.num_prompt_tokens = 2;
  EXPECT_EQ(row.choose().token, 1);
}

TEST(Penalties, RepetitionCountsThePromptAndMovesBothSignsDown) {
  Row row = greedy_row({4.0f, 3.0f});
  row.params.repetition_penalty = 2.0f;
  row.tokens = {0, 0, 0};  // once, however often it occurs
  row.num_prompt_tokens = 3;
  EXPECT_EQ(row.choose().token, 1);
  row.logits = {4.0f, 1.9f};
  EXPECT_EQ(row.choose().token, 0);
  row.logits = {-1.0f, -1.5f};
  EXPECT_EQ(row.choose().token, 1);
}

TEST(Penalties, PresenceAndFrequencyCountTheOutputOnly) {
  Row row = greedy_row({2.0f, 1.0f});
  row.params.presence_penalty = 1.5f;
  row.tokens = {0, 0};
  row.num_prompt_tokens = 2;
  EXPECT_EQ(row.choose().token, 0);
  row.num_prompt_tokens = 1;
  EXPECT_EQ(row.choose().token, 1);
  row.params.presence_penalty = 0.0f;
  row.params.frequency_penalty = 0.4f;
  row.num_prompt_tokens = 0;
  EXPECT_EQ(row.choose().token, 0);  // 2 - 2 x 0.4 > 1
  row.tokens = {0, 0, 0};
  EXPECT_EQ(row.choose().token, 1);  // 2 - 3 x 0.4 < 1
}

TEST(Penalties, ExtremeRepetitionPenaltyStaysFinite) {
  Row row{.logits = {30, 20, 10}};
  row.params.repetition_penalty = 1e-38f;
  row.tokens = {0, 1};
  row.num_prompt_tokens = 2;
  EXPECT_EQ(row.choose().fault, RowFault::kNone);
  EXPECT_THAT(row.choose().token, ::testing::AnyOf(0, 1));
}

TEST(Draw, TopK1TinyTopPMinP1AndTinyTemperatureAreGreedy) {
  RowSampler sampler(257);
  for (uint32_t seed = 0; seed < 200; ++seed) {
    Row row{.logits = random_logits(257, seed)};
    row.logits[seed % 257] = row.logits[(seed + 100) % 257] = 20.0f;  // a tie at the top
    Row greedy = row;
    greedy.params.temperature = 0.0f;
    const TokenId expected = greedy.choose(sampler).token;
    Row top_k = row, top_p = row, cold = row, min_p = row;
    top_k.params.top_k = 1;
    top_p.params.top_p = 1e-6f;
    cold.params.temperature = 1e-38f;
    cold.logits[expected] += 1.0f;  // temperature alone cannot break a tie
    min_p.params.min_p = 1.0f;
    min_p.logits[expected] += 1.0f;
    for (Row* r : {&top_k, &top_p, &cold, &min_p}) {
      r->params.seed = seed;
      EXPECT_EQ(r->choose(sampler).token, expected) << "seed " << seed;
    }
  }
}

TEST(Draw, FiltersKeepExactlyWhatTheyPromise) {
  RowSampler sampler(6);
  // Probabilities .4 .3 .15 .1 .04 .01, out of order.
  const std::vector<double> p = {.1, .4, .01, .3, .04, .15};
  Row row;
  for (double x : p) row.logits.push_back(static_cast<float>(std::log(x)));
  const auto seen = [&](Row r) {
    std::vector<bool> out(6, false);
    for (uint64_t seed = 0; seed < 4000; ++seed) {
      r.params.seed = seed;
      out[r.choose(sampler).token] = true;
    }
    return out;
  };
  Row r = row;
  r.params.top_k = 3;
  EXPECT_THAT(seen(r), ElementsAre(false, true, false, true, false, true));
  r = row;
  r.params.top_p = 0.71f;  // .4 + .3 do not reach it
  EXPECT_THAT(seen(r), ElementsAre(false, true, false, true, false, true));
  r.params.top_p = 0.69f;
  EXPECT_THAT(seen(r), ElementsAre(false, true, false, true, false, false));
  r = row;
  r.params.min_p = 0.24f;  // of .4: at least .096
  EXPECT_THAT(seen(r), ElementsAre(true, true, false, true, false, true));
  r = row;
  r.params.top_k = 2;
  r.params.top_p = 0.56f;  // of what top_k left: .4 / .7 = .571 is enough alone
  EXPECT_THAT(seen(r), ElementsAre(false, true, false, false, false, false));
}

TEST(Draw, DependsOnSeedAndPositionOnly) {
  RowSampler sampler(512), other(512);
  Row row{.logits = random_logits(512, 1), .tokens = {1, 2, 3}};
  row.params.seed = 42;
  const TokenId expected = row.choose(sampler).token;
  Row noise{.logits = random_logits(512, 2), .tokens = {9}};
  noise.params.top_k = 7;
  noise.choose(other);
  EXPECT_EQ(row.choose(other).token, expected);
  Row same_length = row;
  same_length.tokens = {7, 7, 7};
  EXPECT_EQ(same_length.choose(sampler).token, expected);
  int differ = 0;
  for (int n = 4; n < 40; ++n) {
    Row longer = row;
    longer.tokens.assign(n, 1);
    differ += longer.choose(sampler).token != expected;
  }
  EXPECT_GT(differ, 18);
}

// The whole vocabulary and a filter that removes nothing draw the same token: noise belongs to the token.
TEST(Draw, AFilterThatRemovesNothingChangesNothing) {
  RowSampler sampler(300);
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Row row{.logits = random_logits(300, static_cast<uint32_t>(seed))};
    row.params.seed = seed;
    Row filtered = row;
    filtered.params.top_k = 299;
    EXPECT_EQ(row.choose(sampler).token, filtered.choose(sampler).token);
  }
}

// The early exit on the largest possible noise must not change the argmax.
TEST(Draw, PruningIsExact) {
  RowSampler sampler(1000);
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Row row{.logits = random_logits(1000, static_cast<uint32_t>(seed), 8.0f)};
    row.params.seed = seed;
    const float max = *std::max_element(row.logits.begin(), row.logits.end());
    TokenId best = -1;
    double best_score = -1e300;
    for (int i = 0; i < 1000; ++i) {
      const double score = (row.logits[i] - max) + -std::log(-std::log(open_uniform(token_bits(seed, 0, i))));
      if (score > best_score) best_score = score, best = i;
    }
    EXPECT_EQ(row.choose(sampler).token, best);
  }
}

TEST(Logprobs, ChosenFirstThenTheBestWithRank) {
  RowSampler sampler(4);
  const std::vector<float> logits = {std::log(.1f), std::log(.5f), std::log(.2f), std::log(.2f)};
  TokenLogprobs out;
  sampler.logprobs(logits, 0, 3, out);
  EXPECT_THAT(out.token_ids, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(out.rank, 4);
  EXPECT_NEAR(out.logprobs[0], std::log(.1), 1e-6);
  EXPECT_NEAR(out.logprobs[1], std::log(.5), 1e-6);
  EXPECT_NEAR(out.logprobs[3], std::log(.2), 1e-6);
  sampler.logprobs(logits, 3, 0, out);
  EXPECT_THAT(out.token_ids, ElementsAre(3));
  EXPECT_EQ(out.rank, 2);  // tokens strictly better, plus one
  sampler.logprobs(logits, 1, 100, out);
  EXPECT_THAT(out.token_ids, ElementsAre(1, 1, 2, 3, 0));
}

TEST(Logprobs, SumToOneOverTheVocabulary) {
  const auto logits = random_logits(4096, 3, 10.0f);
  RowSampler sampler(4096);
  TokenLogprobs out;
  sampler.logprobs(logits, 17, 4096, out);
  double sum = 0;
  for (size_t i = 1; i < out.logprobs.size(); ++i) {
    sum += std::exp(out.logprobs[i]);
    EXPECT_LE(out.logprobs[i], out.logprobs[std::max<size_t>(i - 1, 1)]);
  }
  EXPECT_NEAR(sum, 1.0, 1e-5);
}

TEST(Logprobs, NaNGivesNaNAndNoCrash) {
  RowSampler sampler(64);
  std::vector<float> logits(64, std::numeric_limits<float>::quiet_NaN());
  TokenLogprobs out;
  sampler.logprobs(logits, 5, 20, out);
  EXPECT_TRUE(std::isnan(out.logprobs[0]));
  EXPECT_EQ(out.token_ids.size(), 21u);
}

}  // namespace
}  // namespace manta::sample
