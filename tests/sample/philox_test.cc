#include "sample/philox.h"

#include <gtest/gtest.h>

namespace manta::sample {
namespace {

// Known answers of Random123 1.14 (tests/kat_vectors, philox4x32 10).
TEST(Philox, MatchesRandom123) {
  EXPECT_EQ(philox4x32({0, 0}, {0, 0, 0, 0}), (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0xa4093822, 0x299f31d0}, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, TokenBitsFollowTheDocumentedLayout) {
  const auto block = philox4x32({0x89abcdef, 0x01234567}, {7, 25, 0, 0});
  for (int lane = 0; lane < 4; ++lane) EXPECT_EQ(token_bits(0x0123456789abcdef, 7, 100 + lane), block[lane]);
}

TEST(Philox, UniformStaysInsideTheOpenInterval) {
  EXPECT_GT(open_uniform(0), 0.0);
  EXPECT_LT(open_uniform(0xffffffff), 1.0);
  EXPECT_EQ(open_uniform(0), 1.0 - open_uniform(0xffffffff));
}

}  // namespace
}  // namespace manta::sample
