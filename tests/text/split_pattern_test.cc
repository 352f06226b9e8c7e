#include "text/split_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "text/pre_tokenizer.h"

namespace manta::text {
namespace {

std::vector<std::string> words(std::vector<std::string> patterns, const std::string& text) {
  std::vector<SplitPattern> splits;
  for (const auto& pattern : patterns) {
    auto split = SplitPattern::compile(pattern, false);
    EXPECT_TRUE(split.ok()) << split.error().message;
    if (!split.ok()) return {};
    splits.push_back(std::move(split).value());
  }
  std::vector<std::string> result;
  PreTokenizer::Scratch scratch;
  const Status status = PreTokenizer(std::move(splits)).for_each_word(text, scratch, [&](std::string_view word) {
    result.emplace_back(word);
  });
  EXPECT_TRUE(status.ok());
  return result;
}

using ::testing::ElementsAre;

TEST(SplitPattern, MatchesAndGapsBothBecomeWords) {
  EXPECT_THAT(words({R"(\p{N}{1,3})"}, "ab12345c"), ElementsAre("ab", "123", "45", "c"));
  EXPECT_THAT(words({R"(\s+)"}, " a "), ElementsAre(" ", "a", " "));
  EXPECT_THAT(words({R"(x)"}, ""), ElementsAre());
}

TEST(SplitPattern, LaterPatternsSeeOnePieceAtATime) {
  // (?!\S) holds at the end of a piece, though a digit follows in the text.
  EXPECT_THAT(words({R"(\p{N})", R"(\s+(?!\S)|\s+)"}, "a  1"), ElementsAre("a", "  ", "1"));
  EXPECT_THAT(words({R"(\s+(?!\S)|\s+)"}, "a  1"), ElementsAre("a", " ", " ", "1"));
}

TEST(SplitPattern, SpacesAreOnigurumasSpaces) {
  // U+180E is white space for PCRE2's \s and not for Oniguruma's; U+0085 and U+3000 are for both.
  EXPECT_THAT(words({R"(\s+)"}, "a\xE1\xA0\x8E"), ElementsAre("a\xE1\xA0\x8E"));
  EXPECT_THAT(words({R"([\s]+)"}, "a\xC2\x85\xE3\x80\x80"), ElementsAre("a", "\xC2\x85\xE3\x80\x80"));
  EXPECT_THAT(words({R"(\S+)"}, " ab"), ElementsAre(" ", "ab"));
}

TEST(SplitPattern, KnowsLettersOfUnicode16) {
  const std::string garay = "\xF0\x90\xB5\x90";        // U+10D50, a letter since Unicode 16
  const std::string extension_i = "\xF0\xAE\xAF\xB0";  // U+2EBF0, a letter since Unicode 15.1
  EXPECT_THAT(words({R"(\p{L}+)"}, "1" + garay + extension_i), ElementsAre("1", garay + extension_i));
  EXPECT_THAT(words({R"([^\p{L}]+)"}, "1" + garay), ElementsAre("1", garay));
  EXPECT_THAT(words({R"(\P{L}+)"}, "12" + garay), ElementsAre("12", garay));
}

TEST(SplitPattern, LiteralsAreNotPatterns) {
  auto split = SplitPattern::compile("a.c", true);
  ASSERT_TRUE(split.ok());
  SplitPattern::Scratch scratch;
  auto match = split->find("abc a.c", 0, scratch);
  ASSERT_TRUE(match.ok());
  ASSERT_TRUE(match->has_value());
  EXPECT_EQ((*match)->begin, 4u);
}

TEST(SplitPattern, RefusesWhatMeansSomethingElseInPcre2) {
  for (const char* pattern :
       {R"(^a)",     R"(a$)",      R"(\h+)",         R"(\d)",     R"(\w)",    R"(\R)",      R"(\X)",   R"(\p{Lu})",
        R"(\p{^L})", R"(\pL)",     R"([a[bc]])",     R"([a&&b])", R"([\S])",  R"([\P{L}])", R"([]a])", R"([[:alpha:]])",
        R"((?i:a))", R"((?<n>a))", R"((*ANYCRLF)a)", R"(a{,3})",  R"(a{2}?)", R"(a{2}+)",   R"(a{)",   R"(\)",
        R"([a)",     R"(\x41)",    R"(\u0041)",      R"(\1)",     R"(\K)",    R"(\Qa\E)",   R"([\)"}) {
    const auto split = SplitPattern::compile(pattern, false);
    ASSERT_FALSE(split.ok()) << pattern;
    EXPECT_EQ(split.error().code, ErrorCode::kUnimplemented) << pattern;
    EXPECT_NE(split.error().message.find(pattern), std::string::npos);
  }
}

TEST(SplitPattern, RefusesPatternsThatDoNotCompileOrMatchNothing) {
  for (const char* pattern : {"a*", "(a", "a)", "*", "(?=a)", "", "[b-a]"}) {
    const auto split = SplitPattern::compile(pattern, false);
    ASSERT_FALSE(split.ok()) << pattern;
    EXPECT_EQ(split.error().code, ErrorCode::kInvalidArgument) << pattern;
  }
}

TEST(SplitPattern, RunawayBacktrackingIsAnError) {
  auto split = SplitPattern::compile("(?:a+)+[bc]", false);
  ASSERT_TRUE(split.ok());
  SplitPattern::Scratch scratch;
  const auto match = split->find(std::string(64, 'a'), 0, scratch);
  ASSERT_FALSE(match.ok());
  EXPECT_EQ(match.error().code, ErrorCode::kResourceExhausted);
}

}  // namespace
}  // namespace manta::text
