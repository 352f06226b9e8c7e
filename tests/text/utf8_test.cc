#include "text/utf8.h"

#include <gtest/gtest.h>

#include <random>

namespace manta::text {
namespace {

std::string decode_in_pieces(const std::string& bytes, size_t piece) {
  std::string out;
  Utf8Stream stream;
  for (size_t pos = 0; pos < bytes.size(); pos += piece) stream.push(bytes.substr(pos, piece), out);
  stream.finish(out);
  return out;
}

TEST(Utf8, CutsIllFormedBytesAsUnicodeRecommends) {
  const std::string r = "\xEF\xBF\xBD";
  // Unicode 15, table 3-8 to 3-11, and the short cases around them.
  const std::pair<std::string, std::string> cases[] = {
      {"", ""},
      {"a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80z", "a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80z"},
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", r + r + r + r + r + r + r + r + "A"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", r + r + r + r + r + r + r + r + "A"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", r + r + r + r + r + "A" + r + r + "B"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", r + r + r + r + "A"},
      {"\xF0\x9F\x98", r},
      {"\xE4\xB8x", r + "x"},
      {"\x80", r},
  };
  for (const auto& [bytes, expected] : cases) {
    for (size_t piece = 1; piece <= 5; ++piece) EXPECT_EQ(decode_in_pieces(bytes, piece), expected) << piece;
  }
}

TEST(Utf8, HoldsBackOnlyTheUnfinishedCharacter) {
  Utf8Stream stream;
  std::string out;
  stream.push("ab\xF0\x9F\x98", out);
  EXPECT_EQ(out, "ab");
  stream.push("\x80!", out);
  EXPECT_EQ(out, "ab\xF0\x9F\x98\x80!");
}

TEST(Utf8, WellFormedPrefixAgreesWithTheStream) {
  std::mt19937 rng(7);
  const uint8_t bytes[] = {0x41, 0x80, 0xBF, 0xC2, 0xC1, 0xE0, 0xA0, 0xED, 0x9F, 0xEF, 0xF0, 0x90, 0xF4, 0x8F, 0xF5};
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (size_t i = rng() % 8; i > 0; --i) text.push_back(static_cast<char>(bytes[rng() % sizeof(bytes)]));
    const size_t prefix = well_formed_prefix(text);
    EXPECT_EQ(decode_in_pieces(text.substr(0, prefix), 1), text.substr(0, prefix));
    EXPECT_EQ(prefix == text.size(), decode_in_pieces(text, 2) == text);
    if (prefix < text.size()) {
      EXPECT_TRUE(decode_in_pieces(text, 3).substr(prefix).starts_with("\xEF\xBF\xBD"));
    }
  }
}

}  // namespace
}  // namespace manta::text
