#include "sample/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sample/after_token.h"

namespace manta::sample {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Token b is the byte b; then some of several bytes, a special token and the end token. The logits are wider.
constexpr TokenId kTrue = 256, kSpecial = 260, kEnd = 261;
constexpr int kVocabSize = 300;

GrammarVocabulary vocabulary() {
  GrammarVocabulary v;
  for (int byte = 0; byte < 256; ++byte) v.token_bytes.push_back(std::string(1, static_cast<char>(byte)));
  for (const char* text : {"true", "{\"", "\":", "ab", "", ""}) v.token_bytes.push_back(text);
  v.vocab_size = kVocabSize;
  v.stop_token_ids = {kEnd};
  return v;
}

GrammarSpec spec(GrammarKind kind, std::string text) {
  GrammarSpec out;
  out.kind = kind;
  out.text = std::move(text);
  return out;
}

class Grammar : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = GrammarCompiler::make(vocabulary());
    ASSERT_TRUE(made.ok()) << made.error().message;
    compiler = std::move(made).value();
  }

  std::unique_ptr<GrammarMatcher> matcher(GrammarKind kind, std::string text) {
    auto compiled = compiler->compile(spec(kind, std::move(text)));
    EXPECT_TRUE(compiled.ok()) << compiled.error().message;
    return compiled.ok() ? (*compiled)->make_matcher() : nullptr;
  }

  std::string refusal(GrammarKind kind, std::string text) {
    auto compiled = compiler->compile(spec(kind, std::move(text)));
    EXPECT_FALSE(compiled.ok());
    if (compiled.ok()) return "";
    EXPECT_EQ(compiled.error().code, ErrorCode::kInvalidArgument);
    return compiled.error().message;
  }

  static bool allows(GrammarMatcher& m, TokenId token) {
    std::vector<uint32_t> words((kVocabSize + 31) / 32);
    return !m.fill_bitmask(words) || (words[token / 32] >> (token % 32) & 1);
  }

  // Byte by byte; what is not allowed must not be accepted either.
  static bool takes(GrammarMatcher& m, std::string_view text) {
    for (const char c : text) {
      const TokenId token = static_cast<unsigned char>(c);
      const bool allowed = allows(m, token);
      EXPECT_EQ(m.accept(token), allowed) << text << " at " << c;
      if (!allowed) return false;
    }
    return true;
  }

  bool matches(GrammarKind kind, const std::string& grammar, std::string_view text) {
    auto m = matcher(kind, grammar);
    return takes(*m, text) && allows(*m, kEnd);
  }

  std::unique_ptr<GrammarCompiler> compiler;
};

TEST_F(Grammar, JsonSchema) {
  const std::string schema =
      R"({"type":"object","properties":{"a":{"type":"boolean"},"b":{"type":"integer"}},"required":["a"]})";
  EXPECT_TRUE(matches(GrammarKind::kJsonSchema, schema, R"({"a": true, "b": -12})"));
  EXPECT_TRUE(matches(GrammarKind::kJsonSchema, schema, R"({"a":false})"));
  EXPECT_FALSE(matches(GrammarKind::kJsonSchema, schema, R"({"a":1)"));
  EXPECT_FALSE(matches(GrammarKind::kJsonSchema, schema, R"({"b":1})"));
  EXPECT_FALSE(matches(GrammarKind::kJsonSchema, schema, R"({"a":true,"c")"));
}

TEST_F(Grammar, JsonObjectIsAnyObjectAndNothingElse) {
  EXPECT_TRUE(matches(GrammarKind::kJsonObject, "", R"({"x": [1, {"y": null}], "z": "ä\n"})"));
  EXPECT_TRUE(matches(GrammarKind::kJsonObject, "", "{}"));
  EXPECT_FALSE(matches(GrammarKind::kJsonObject, "", "[1]"));
  EXPECT_FALSE(matches(GrammarKind::kJsonObject, "", "3"));
}

TEST_F(Grammar, WhitespaceOnlyWhereItIsAllowed) {
  GrammarSpec compact = spec(GrammarKind::kJsonSchema, R"({"type":"array","items":{"type":"integer"}})");
  EXPECT_TRUE(matches(compact.kind, compact.text, "[ 1 ,\n2]"));
  compact.any_whitespace = false;
  auto m = (*compiler->compile(compact))->make_matcher();
  EXPECT_FALSE(takes(*m, "[ 1"));
}

TEST_F(Grammar, RegexChoiceEbnfAndStructuralTag) {
  EXPECT_TRUE(matches(GrammarKind::kRegex, "[a-c]+x?", "abcx"));
  EXPECT_FALSE(matches(GrammarKind::kRegex, "[a-c]+x?", "x"));
  EXPECT_TRUE(matches(GrammarKind::kEbnf, "root ::= \"a\" root | \"b\"", "aab"));
  EXPECT_FALSE(matches(GrammarKind::kEbnf, "root ::= \"a\" root | \"b\"", "aa"));
  EXPECT_TRUE(matches(GrammarKind::kStructuralTag,
                      R"({"type":"structural_tag","format":{"type":"const_string","value":"ab"}})", "ab"));
}

TEST_F(Grammar, ChoicesAreTakenLiterally) {
  const std::string choices = R"(["yes", "a \"b\" \\ [c]* ü", "line\nbreak\u0001"])";
  for (const char* text : {"yes", "a \"b\" \\ [c]* ü", "line\nbreak\x01"}) {
    EXPECT_TRUE(matches(GrammarKind::kChoice, choices, text)) << text;
  }
  EXPECT_FALSE(matches(GrammarKind::kChoice, choices, "ye"));
  EXPECT_FALSE(matches(GrammarKind::kChoice, choices, "no"));
}

TEST_F(Grammar, TokensOfSeveralBytesEndAndSpecialTokens) {
  auto m = matcher(GrammarKind::kJsonSchema, R"({"type":"boolean"})");
  EXPECT_TRUE(allows(*m, kTrue));
  EXPECT_FALSE(allows(*m, kEnd));
  EXPECT_TRUE(m->accept(kTrue));
  EXPECT_TRUE(allows(*m, kEnd));
  EXPECT_FALSE(allows(*m, kTrue));
  for (TokenId token : {kSpecial, kVocabSize - 1}) EXPECT_FALSE(allows(*m, token));
  EXPECT_FALSE(m->is_terminated());
  EXPECT_TRUE(m->accept(kEnd));
  EXPECT_TRUE(m->is_terminated());
  EXPECT_FALSE(m->accept(kEnd));
  m->rollback(2);
  EXPECT_FALSE(m->is_terminated());
  EXPECT_TRUE(allows(*m, 'f'));
}

TEST_F(Grammar, AfterATokenOnlyWhatFollowsItIsHeld) {
  auto m = after_token(kSpecial, matcher(GrammarKind::kRegex, "ab"));
  for (const TokenId token : {TokenId{'x'}, TokenId{'a'}, kTrue, kEnd}) {
    EXPECT_TRUE(allows(*m, token));
    EXPECT_TRUE(m->accept(token));
  }
  EXPECT_FALSE(m->is_terminated());
  EXPECT_TRUE(m->accept(kSpecial));
  EXPECT_FALSE(allows(*m, 'x'));
  EXPECT_FALSE(m->accept('x'));
  EXPECT_TRUE(takes(*m, "ab"));
  EXPECT_TRUE(m->accept(kEnd));
  EXPECT_TRUE(m->is_terminated());
  m->rollback(2);
  EXPECT_FALSE(m->is_terminated());
  EXPECT_TRUE(allows(*m, 'b'));
  m->rollback(2);  // the token itself
  EXPECT_TRUE(allows(*m, 'x'));
  EXPECT_TRUE(m->accept('x'));
  EXPECT_TRUE(m->accept(kSpecial));
  EXPECT_TRUE(takes(*m, "ab"));
}

TEST_F(Grammar, MatchersOfOneGrammarAreIndependentAndOutliveTheCompiler) {
  auto compiled = *compiler->compile(spec(GrammarKind::kRegex, "ab"));
  auto a = compiled->make_matcher(), b = compiled->make_matcher();
  EXPECT_GT(compiled->num_bytes(), 0u);
  compiled.reset();
  compiler.reset();
  EXPECT_TRUE(takes(*a, "ab"));
  EXPECT_TRUE(takes(*b, "ab"));
}

TEST_F(Grammar, ErrorsNameTheKindAndTheReason) {
  EXPECT_THAT(refusal(GrammarKind::kRegex, "(ab"), HasSubstr("regex: Regex parsing error at position 4"));
  EXPECT_THAT(refusal(GrammarKind::kEbnf, "root ::= foo"),
              HasSubstr("grammar: EBNF parser error at line 1, column 10"));
  EXPECT_THAT(refusal(GrammarKind::kJsonSchema, R"({"type":"objct"})"), HasSubstr("Unsupported type \"objct\""));
  EXPECT_THAT(refusal(GrammarKind::kJsonSchema, "{\"type\":"), Not(HasSubstr(".cc")));
  EXPECT_THAT(refusal(GrammarKind::kJsonSchema, ""), HasSubstr("json_schema: "));
  EXPECT_THAT(refusal(GrammarKind::kStructuralTag, "{}"), HasSubstr("structural_tag: "));
  EXPECT_THAT(refusal(GrammarKind::kChoice, "[]"), HasSubstr("at least one string"));
  EXPECT_THAT(refusal(GrammarKind::kChoice, "[\"a\", 1]"), HasSubstr("entry 1"));
  EXPECT_THAT(refusal(GrammarKind::kNone, ""), HasSubstr("no grammar"));
}

TEST_F(Grammar, CostIsBoundedBeforeItArises) {
  EXPECT_THAT(refusal(GrammarKind::kRegex, std::string(65537, 'a')), HasSubstr("65537 bytes: at most 65536"));
  EXPECT_THAT(refusal(GrammarKind::kRegex, std::string(10000, '(') + std::string(10000, ')')),
              HasSubstr("10000 levels deep: at most 128"));
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += R"({"type":"array","items":)";
  EXPECT_THAT(refusal(GrammarKind::kJsonSchema, deep), HasSubstr("1000 levels"));
  // Found by the fuzzer: xgrammar's own reading of these overflows.
  EXPECT_THAT(refusal(GrammarKind::kRegex, R"([^\x0eeeeeeeeeee])"), HasSubstr(R"(\x0eeeeeeeeeee names no character)"));
  EXPECT_THAT(refusal(GrammarKind::kEbnf, R"(root ::= "\Uffffffff")"), HasSubstr("names no character"));
  EXPECT_TRUE(matches(GrammarKind::kEbnf, R"(root ::= "\U00000041\x42\x000000043")", "ABC"));
  // Brackets in strings are text.
  EXPECT_TRUE(matches(GrammarKind::kJsonSchema, "{\"const\":\"" + std::string(200, '[') + "\"}",
                      "\"" + std::string(200, '[') + "\""));
}

TEST(GrammarCompiler, RefusesAVocabularyItCannotUse) {
  GrammarVocabulary v = vocabulary();
  v.vocab_size = 10;
  EXPECT_FALSE(GrammarCompiler::make(v).ok());
  v = vocabulary();
  v.stop_token_ids = {};
  EXPECT_THAT(GrammarCompiler::make(v).error().message, HasSubstr("needs an end token"));
  v.stop_token_ids = {kVocabSize};
  EXPECT_THAT(GrammarCompiler::make(v).error().message, HasSubstr("must be in [0, 300)"));
}

}  // namespace
}  // namespace manta::sample
