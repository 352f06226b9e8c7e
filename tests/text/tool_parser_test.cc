#include "text/tool_parser.h"

#include <gtest/gtest.h>

#include <random>

#include "test_tokenizer.h"
#include "text/reasoning_parser.h"
#include "text/tokenizer.h"

namespace manta::text {
namespace {

// "content [name|arguments] [name|arguments]", however the pieces came.
std::string parse(std::string_view parser_name, const std::string& text, const std::vector<size_t>& cuts) {
  ToolParser parser(parser_name);
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;
  const auto take = [&](ToolParser::Delta delta) {
    content += delta.content;
    for (const auto& piece : delta.pieces) {
      if (!piece.name.empty() || piece.index == static_cast<int>(calls.size())) {
        EXPECT_EQ(piece.index, static_cast<int>(calls.size()));
        EXPECT_EQ(piece.arguments, "");  // the name comes first, by itself
        calls.emplace_back(piece.name, "");
      } else {
        EXPECT_EQ(piece.index, static_cast<int>(calls.size()) - 1);
        calls.back().second += piece.arguments;
      }
    }
  };
  size_t pos = 0;
  for (const size_t cut : cuts) {
    ToolParser::Delta delta;
    parser.push(std::string_view(text).substr(pos, cut - pos), delta);
    take(std::move(delta));
    pos = cut;
  }
  ToolParser::Delta delta;
  parser.push(std::string_view(text).substr(pos), delta);
  parser.finish(delta);
  take(std::move(delta));
  EXPECT_EQ(parser.num_calls(), static_cast<int>(calls.size()));
  for (const auto& [name, arguments] : calls) content += "[" + name + "|" + arguments + "]";
  return content;
}

// Whole, byte by byte, and in random pieces.
void expect_parsed(std::string_view parser, const std::string& text, const std::string& expected) {
  EXPECT_EQ(parse(parser, text, {}), expected);
  std::vector<size_t> every_byte;
  for (size_t i = 1; i < text.size(); ++i) every_byte.push_back(i);
  EXPECT_EQ(parse(parser, text, every_byte), expected);
  std::mt19937 rng(1);
  for (int round = 0; round < 50; ++round) {
    std::vector<size_t> cuts;
    for (const size_t pos : every_byte) {
      if (rng() % 7 == 0) cuts.push_back(pos);
    }
    EXPECT_EQ(parse(parser, text, cuts), expected);
  }
}

const std::string kBegin = "<｜tool▁calls▁begin｜>", kEnd = "<｜tool▁calls▁end｜>", kSep = "<｜tool▁sep｜>";
const std::string kOne = "<｜tool▁call▁begin｜>", kOneEnd = "<｜tool▁call▁end｜>";

std::string v3_call(const std::string& name, const std::string& arguments) {
  return kOne + "function" + kSep + name + "\n```json\n" + arguments + "\n```" + kOneEnd;
}

TEST(ToolParser, DeepSeekV3) {
  expect_parsed("deepseek_v3", "Just text with < and <｜tool", "Just text with < and <｜tool");
  expect_parsed("deepseek_v3", "Hi." + kBegin + v3_call("get_weather", R"({"city": "Paris"})") + kEnd,
                R"(Hi.[get_weather|{"city": "Paris"}])");
  expect_parsed("deepseek_v3",
                kBegin + v3_call("f", "{}") + "\n" + v3_call("g", "{\n \"a\": \"```\"\n}") + kEnd + "after",
                "[f|{}][g|{\n \"a\": \"```\"\n}]");
  expect_parsed("deepseek_v3", "a" + kBegin + kEnd, "a");
}

TEST(ToolParser, DeepSeekV31) {
  expect_parsed(
      "deepseek_v31",
      "a" + kBegin + kOne + "f" + kSep + R"({"x": "<｜tool"})" + kOneEnd + kOne + "g" + kSep + "{}" + kOneEnd + kEnd,
      R"(a[f|{"x": "<｜tool"}][g|{}])");
  expect_parsed("deepseek_v31", kBegin + kOne + " f\n" + kOneEnd + kEnd, "[f|]");
}

TEST(ToolParser, AnswersThatWereCutOff) {
  const std::string whole = kBegin + v3_call("f", R"({"a": 1})") + kEnd;
  expect_parsed("deepseek_v3", whole.substr(0, whole.find("\n```json")), "");
  expect_parsed("deepseek_v3", whole.substr(0, whole.find("json\n{")), "[f|]");
  expect_parsed("deepseek_v3", whole.substr(0, whole.find(": 1")), R"([f|{"a"])");
  expect_parsed("deepseek_v3", whole.substr(0, whole.find("\n```" + kOneEnd) + 4), R"([f|{"a": 1}])");
  expect_parsed("deepseek_v3", whole.substr(0, whole.find(kOneEnd) + 3), R"([f|{"a": 1}])");
  expect_parsed("deepseek_v31", kBegin + kOne + "f" + kSep + R"({"a": "x <)", R"([f|{"a": "x <])");
}

TEST(ToolParser, AFenceThatIsMissingIsNotNeeded) {
  expect_parsed("deepseek_v3", kBegin + kOne + "function" + kSep + "f\n{\"a\": 1}" + kOneEnd + kEnd, R"([f|{"a": 1}])");
}

TEST(ToolParser, ArgumentsStreamAsTheyCome) {
  ToolParser parser("deepseek_v3");
  ToolParser::Delta delta;
  parser.push("x" + kBegin + kOne + "function" + kSep + "f", delta);
  EXPECT_EQ(delta.content, "x");
  EXPECT_TRUE(delta.pieces.empty());  // the name may go on
  parser.push("\n```json\n{\"a\"", delta);
  ASSERT_EQ(delta.pieces.size(), 2u);
  EXPECT_EQ(delta.pieces[0].name, "f");
  EXPECT_EQ(delta.pieces[1].arguments, "{\"a\"");
  delta = {};
  parser.push(": 1}\n", delta);
  ASSERT_EQ(delta.pieces.size(), 1u);
  EXPECT_EQ(delta.pieces[0].arguments, ": 1}");  // the line end may belong to the fence
}

TEST(ToolParser, ChecksItsNameAndTheVocabulary) {
  const auto tiny = Tokenizer::load("models/tiny-v3");
  ASSERT_TRUE(tiny.ok());
  EXPECT_TRUE(ToolParser::check("deepseek_v3", **tiny).ok());
  EXPECT_TRUE(ToolParser::check("deepseek_v31", **tiny).ok());
  EXPECT_EQ(ToolParser::check("hermes", **tiny).error().code, ErrorCode::kInvalidArgument);
  const auto bare = Tokenizer::from_json(tokenizer_json().dump(), nullptr);
  ASSERT_TRUE(bare.ok());
  const Status status = ToolParser::check("deepseek_v3", **bare);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kFailedPrecondition);
  EXPECT_NE(status.error().message.find(kBegin), std::string::npos);
}

// "reasoning|content"
std::string reason(std::string_view name, bool thinking, const std::string& text, size_t piece) {
  ReasoningParser parser(name, thinking);
  ReasoningParser::Delta delta;
  for (size_t pos = 0; pos < text.size(); pos += piece) parser.push(std::string_view(text).substr(pos, piece), delta);
  parser.finish(delta);
  return delta.reasoning + "|" + delta.content;
}

TEST(ReasoningParser, PartsReasoningFromContent) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "|"},
      {"why</think>so", "why|so"},
      {"<think>why</think>\n\nso", "why|\n\nso"},
      {"<think>why", "why|"},
      {"why", "why|"},
      {"a < b </thin", "a < b </thin|"},
      {"why</think>so</think>again", "why|so</think>again"},
      {"</think>so", "|so"},
      {"a <think> b</think>c", "a <think> b|c"},
      {"<thin", "<thin|"},
  };
  for (const auto& [text, expected] : cases) {
    for (size_t piece = 1; piece < 30; ++piece) {
      EXPECT_EQ(reason("deepseek_r1", false, text, piece), expected);
      EXPECT_EQ(reason("deepseek_v3", true, text, piece), expected);
      EXPECT_EQ(reason("deepseek_v3", false, text, piece), "|" + text);
    }
  }
}

TEST(ReasoningParser, HoldsBackOnlyAPossibleMarker) {
  ReasoningParser parser("deepseek_r1", false);
  ReasoningParser::Delta delta;
  parser.push("step </", delta);
  EXPECT_EQ(delta.reasoning, "step ");
  EXPECT_TRUE(parser.is_reasoning());
  parser.push("b> </think>", delta);
  EXPECT_EQ(delta.reasoning, "step </b> ");
  EXPECT_FALSE(parser.is_reasoning());
}

TEST(ReasoningParser, ChecksItsNameAndTheVocabulary) {
  auto json = tokenizer_json();
  const auto bare = Tokenizer::from_json(json.dump(), nullptr);
  json["added_tokens"] = {added_token(256, "<think>", false), added_token(257, "</think>", false)};
  const auto thinking = Tokenizer::from_json(json.dump(), nullptr);
  ASSERT_TRUE(bare.ok() && thinking.ok());
  EXPECT_TRUE(ReasoningParser::check("deepseek_r1", **thinking).ok());
  EXPECT_TRUE(ReasoningParser::check("deepseek_v3", **thinking).ok());
  EXPECT_EQ(ReasoningParser::check("qwen3", **thinking).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(ReasoningParser::check("deepseek_r1", **bare).error().code, ErrorCode::kFailedPrecondition);
}

}  // namespace
}  // namespace manta::text
