#include "text/added_tokens.h"

#include <gtest/gtest.h>

namespace manta::text {
namespace {

// "plain|<1>token|…": ids in angle brackets.
std::string split(const std::vector<AddedToken>& tokens, const std::string& text) {
  std::vector<AddedTokenSet::Segment> segments;
  AddedTokenSet(tokens).split(text, segments);
  std::string shown;
  for (const auto& segment : segments) {
    if (!shown.empty()) shown += '|';
    if (segment.id >= 0) shown += "<" + std::to_string(segment.id) + ">";
    shown += segment.text;
  }
  return shown;
}

AddedToken token(TokenId id, std::string content, bool lstrip = false, bool rstrip = false) {
  return {.id = id, .content = std::move(content), .lstrip = lstrip, .rstrip = rstrip};
}

TEST(AddedTokens, LeftmostThenLongest) {
  const std::vector<AddedToken> tokens{token(1, "ab"), token(2, "abcd"), token(3, "bc"), token(4, "d")};
  EXPECT_EQ(split(tokens, "xabcy"), "x|<1>ab|cy");
  EXPECT_EQ(split(tokens, "abcdd"), "<2>abcd|<4>d");
  EXPECT_EQ(split(tokens, "bcab"), "<3>bc|<1>ab");
  EXPECT_EQ(split(tokens, ""), "");
  EXPECT_EQ(split({}, "text"), "text");
}

TEST(AddedTokens, StripTakesWhiteSpaceAlong) {
  EXPECT_EQ(split({token(1, "<m>", true, false)}, "a \t\xE3\x80\x80<m> b"), "a|<1> \t\xE3\x80\x80<m>| b");
  EXPECT_EQ(split({token(1, "<m>", false, true)}, "a <m> \n b"), "a |<1><m> \n |b");
  EXPECT_EQ(split({token(1, "<m>", true, true)}, "<m> <m>"), "<1><m> |<1><m>");
  // U+180E is not white space; U+00A0 and U+0085 are.
  EXPECT_EQ(split({token(1, "<m>", true, true)}, "\xE1\xA0\x8E<m>\xC2\xA0\xC2\x85."),
            "\xE1\xA0\x8E|<1><m>\xC2\xA0\xC2\x85|.");
}

TEST(AddedTokens, TheFirstOfEqualTokensIsNotLost) {
  EXPECT_EQ(split({token(1, "a"), token(2, "b"), token(3, "\xE4\xB8\xAD")},
                  "ab\xE4\xB8\xAD"
                  "c"),
            "<1>a|<2>b|<3>\xE4\xB8\xAD|c");
}

}  // namespace
}  // namespace manta::text
