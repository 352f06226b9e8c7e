#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace manta::text {
namespace {

struct Outcome {
  std::string text;
  std::optional<size_t> stop;
  bool operator==(const Outcome&) const = default;
};

Outcome run(std::vector<std::string> stops, const std::string& text, size_t piece, bool include = false) {
  auto strings = StopStrings::create(std::move(stops));
  EXPECT_TRUE(strings.ok());
  StopMatcher matcher(*strings, include);
  Outcome outcome;
  for (size_t pos = 0; pos < text.size() && !outcome.stop; pos += piece) {
    outcome.stop = matcher.push(text.substr(pos, piece), outcome.text);
  }
  if (!outcome.stop) matcher.finish(outcome.text);
  return outcome;
}

// By trying every end, then every string in the order of the list.
Outcome by_definition(const std::vector<std::string>& stops, const std::string& text, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    for (size_t i = 0; i < stops.size(); ++i) {
      if (!text.substr(0, end).ends_with(stops[i])) continue;
      return {text.substr(0, include ? end : end - stops[i].size()), i};
    }
  }
  return {text, std::nullopt};
}

TEST(StopStrings, EqualsTheDefinitionHoweverTheTextIsCut) {
  std::mt19937 rng(5);
  const auto word = [&](size_t max) {
    std::string s;
    for (size_t i = 1 + rng() % max; i > 0; --i) s.push_back(static_cast<char>('a' + rng() % 3));
    return s;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 1 + rng() % 4; i > 0; --i) stops.push_back(word(5));
    const std::string text = word(20);
    for (const bool include : {false, true}) {
      const Outcome expected = by_definition(stops, text, include);
      for (const size_t piece : {1, 2, 3, 7, 20}) EXPECT_EQ(run(stops, text, piece, include), expected) << text;
    }
  }
}

TEST(StopStrings, HoldsBackOnlyAPossibleBeginning) {
  auto strings = StopStrings::create({"\n\nUser:", "END"});
  ASSERT_TRUE(strings.ok());
  StopMatcher matcher(*strings, false);
  std::string out;
  EXPECT_EQ(matcher.push("hello", out), std::nullopt);
  EXPECT_EQ(out, "hello");
  EXPECT_EQ(matcher.push(" E", out), std::nullopt);
  EXPECT_EQ(out, "hello ");
  EXPECT_EQ(matcher.push("x\n\nUs", out), std::nullopt);
  EXPECT_EQ(out, "hello Ex");
  EXPECT_EQ(matcher.push("er: and more", out), std::optional<size_t>(0));
  EXPECT_EQ(out, "hello Ex");
}

TEST(StopStrings, CharactersStayWhole) {
  EXPECT_EQ(run({"。end"}, "中。中。end", 9), (Outcome{"中。中", 0}));
  auto strings = StopStrings::create({"é!"});
  ASSERT_TRUE(strings.ok());
  StopMatcher matcher(*strings, false);
  std::string out;
  (void)matcher.push("aé", out);
  EXPECT_EQ(out, "a");
  matcher.finish(out);
  EXPECT_EQ(out, "aé");
}

TEST(StopStrings, PassedTextCountsForNothing) {
  auto strings = StopStrings::create({"ab"});
  ASSERT_TRUE(strings.ok());
  StopMatcher matcher(*strings, false);
  std::string out;
  matcher.pass("xabx a", out);
  EXPECT_EQ(matcher.push("b", out), std::nullopt);
  EXPECT_EQ(out, "xabx ab");
}

TEST(StopStrings, BadListsAreRefused) {
  EXPECT_FALSE(StopStrings::create({""}).ok());
  EXPECT_FALSE(StopStrings::create({"a", "\xFF"}).ok());
  EXPECT_FALSE(StopStrings::create({std::string(StopStrings::kMaxTotalBytes + 1, 'a')}).ok());
  EXPECT_TRUE(StopStrings::create({}).ok());
}

}  // namespace
}  // namespace manta::text
