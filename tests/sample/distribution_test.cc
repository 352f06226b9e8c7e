// Chi-square tests of what is drawn, over many seeds and over many positions, against the distribution that the
// parameters define. Seeds are fixed, so a pass is a pass for ever; the bound is the 99.9 % point of chi-square, which
// a right sampler with fresh seeds would miss once in a thousand runs.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sample/sampler.h"

namespace manta::sample {
namespace {

// Wilson-Hilferty: the 99.9 % point of chi-square with n degrees of freedom, within 1 % for n >= 3.
double chi_square_999(int n) {
  const double a = 2.0 / (9.0 * n);
  return n * std::pow(1.0 - a + 3.0902 * std::sqrt(a), 3);
}

double chi_square(const std::vector<int>& counts, const std::vector<double>& p, int draws) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " has no probability";
      continue;
    }
    const double expected = p[i] * draws;
    sum += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return sum;
}

struct Case {
  const char* name;
  std::vector<double> p;  // of the logits, at temperature 1
  SamplingParams params;
  std::vector<double> expected;  // after the parameters, not normalised
};

std::vector<double> to_power(std::vector<double> p, double exponent) {
  for (double& x : p) x = std::pow(x, exponent);
  return p;
}

const std::vector<double> kSkewed = {.02, .3, .05, .2, .1, .08, .15, .1};
const std::vector<double> kUniform(64, 1.0 / 64);

std::vector<Case> cases() {
  std::vector<Case> out;
  out.push_back({"plain", kSkewed, {}, kSkewed});
  out.push_back({"uniform", kUniform, {}, kUniform});
  SamplingParams p;
  p.temperature = 0.5f;
  out.push_back({"cold", kSkewed, p, to_power(kSkewed, 2)});
  p.temperature = 2.0f;
  out.push_back({"hot", kSkewed, p, to_power(kSkewed, 0.5)});
  p = {};
  p.top_k = 4;  // .3 .2 .15 and the lower id of the two .1
  out.push_back({"top_k", kSkewed, p, {0, .3, 0, .2, .1, 0, .15, 0}});
  p = {};
  p.top_p = 0.6f;
  out.push_back({"top_p", kSkewed, p, {0, .3, 0, .2, 0, 0, .15, 0}});
  p = {};
  p.min_p = 0.3f;
  out.push_back({"min_p", kSkewed, p, {0, .3, 0, .2, .1, 0, .15, .1}});
  p = {};
  p.logit_bias = {{0, std::log(10.0f)}};
  out.push_back({"bias", kSkewed, p, {.2, .3, .05, .2, .1, .08, .15, .1}});
  return out;
}

class Distribution : public ::testing::TestWithParam<bool> {};  // false: vary the seed; true: vary the position

TEST_P(Distribution, MatchesItsDefinition) {
  constexpr int kDraws = 20000;
  for (Case& c : std::vector<Case>(cases())) {
    std::vector<float> logits;
    for (double x : c.p) logits.push_back(static_cast<float>(std::log(x)) + 3.0f);
    RowSampler sampler(static_cast<int>(logits.size()));
    std::vector<TokenId> tokens;
    std::vector<int> counts(c.p.size(), 0);
    c.params.seed = 0x5eed;
    for (int i = 0; i < kDraws; ++i) {
      if (GetParam()) {
        tokens.push_back(0);
      } else {
        c.params.seed = static_cast<uint64_t>(i) << (i % 33);  // low and high word of the key
      }
      ++counts[sampler.choose({logits, &c.params, tokens, 0, {}}).token];
    }
    double total = 0;
    int support = 0;
    for (double x : c.expected) total += x, support += x > 0;
    for (double& x : c.expected) x /= total;
    EXPECT_LT(chi_square(counts, c.expected, kDraws), chi_square_999(support - 1)) << c.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Over, Distribution, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Positions" : "Seeds"; });

// Two tokens of one sequence must be independent, as must the tokens of two requests with neighbouring seeds.
TEST(Independence, NeighbouringPositionsAndSeeds) {
  constexpr int kDraws = 20000, kVocab = 6;
  const std::vector<float> logits(kVocab, 0.0f);
  RowSampler sampler(kVocab);
  for (bool neighbour_seed : {false, true}) {
    std::vector<int> counts(kVocab * kVocab, 0);
    for (int i = 0; i < kDraws; ++i) {
      SamplingParams p;
      p.seed = static_cast<uint64_t>(i) * 2;
      std::vector<TokenId> tokens(3, 0);
      const TokenId a = sampler.choose({logits, &p, tokens, 0, {}}).token;
      if (neighbour_seed) {
        p.seed += 1;
      } else {
        tokens.push_back(a);
      }
      const TokenId b = sampler.choose({logits, &p, tokens, 0, {}}).token;
      ++counts[a * kVocab + b];
    }
    const std::vector<double> p(kVocab * kVocab, 1.0 / (kVocab * kVocab));
    EXPECT_LT(chi_square(counts, p, kDraws), chi_square_999(kVocab * kVocab - 1)) << neighbour_seed;
  }
}

}  // namespace
}  // namespace manta::sample
