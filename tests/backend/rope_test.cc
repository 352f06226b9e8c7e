// That the angles are DeepSeek's is shown by the golden tests; these are the properties, and the forms the tiny model
// does not have.
#include "backend/host/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace manta::backend::host {
namespace {

ModelShape rope_shape(bool yarn) {
  ModelShape s;
  s.qk_rope_head_dim = 64;
  s.rope_theta = 10000.0f;
  s.yarn = {.enabled = yarn,
            .factor = 40.0f,
            .original_max_position_embeddings = 4096,
            .mscale = 1.0f,
            .mscale_all_dim = 1.0f};
  return s;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

TEST(Rope, ScoresDependOnTheDistanceOnly) {
  for (bool yarn : {false, true}) {
    const RopeTable table(rope_shape(yarn), 300);
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> q(64), k(64);
    for (float& x : q) x = normal(rng);
    for (float& x : k) x = normal(rng);
    const auto score = [&](int query_position, int key_position) {
      auto a = q, b = k;
      table.rotate(a.data(), query_position);
      table.rotate(b.data(), key_position);
      return dot(a, b);
    };
    EXPECT_NEAR(score(0, 0), dot(q, k), 1e-5);
    EXPECT_NEAR(score(57, 50), score(207, 200), 1e-3);
    EXPECT_GT(std::fabs(score(57, 50) - score(57, 20)), 1e-2);
  }
}

// V3's own numbers: dim 64, theta 10000, factor 40 over 4096, beta 32 and 1, give the ramp pairs 10 .. 23.
TEST(Rope, YarnKeepsFastPairsAndStretchesSlowOnes) {
  const auto plain = rope_frequencies(rope_shape(false)), yarn = rope_frequencies(rope_shape(true));
  for (int i = 0; i < 32; ++i) {
    if (i <= 10) {
      EXPECT_EQ(yarn[i], plain[i]) << i;
    } else if (i >= 23) {
      EXPECT_NEAR(yarn[i], plain[i] / 40, plain[i] * 1e-7) << i;
    } else {
      EXPECT_LT(yarn[i], plain[i]) << i;
      EXPECT_GT(yarn[i], plain[i] / 40) << i;
    }
  }
  EXPECT_NEAR(plain[16], 0.01, 1e-9);
}

TEST(Rope, MscaleRatioScalesTheRotation) {
  ModelShape s = rope_shape(true);
  EXPECT_EQ(RopeTable(s, 1).cos(0)[0], 1.0f);  // equal mscales cancel
  s.yarn.mscale_all_dim = 0.0f;
  EXPECT_NEAR(RopeTable(s, 1).cos(0)[0], 0.1 * std::log(40.0) + 1.0, 1e-6);
  s.yarn.factor = 1.0f;
  EXPECT_EQ(RopeTable(s, 1).cos(0)[0], 1.0f);
}

}  // namespace
}  // namespace manta::backend::host
