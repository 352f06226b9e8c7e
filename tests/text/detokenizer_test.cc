#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "test_tokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace manta::text {
namespace {

std::shared_ptr<const Tokenizer> load(const nlohmann::ordered_json& json) {
  auto tokenizer = Tokenizer::from_json(json.dump(), nullptr);
  EXPECT_TRUE(tokenizer.ok());
  return tokenizer.ok() ? *tokenizer : nullptr;
}

TEST(Detokenizer, PiecesTogetherAreTheDecodedText) {
  const auto tiny = Tokenizer::load("models/tiny-v3");
  ASSERT_TRUE(tiny.ok());
  for (const auto& c : read_jsonl("tests/golden/decode_cases.jsonl")) {
    for (const bool skip : {false, true}) {
      Detokenizer detokenizer(*tiny, skip);
      std::string text;
      for (const TokenId id : c["ids"].get<std::vector<TokenId>>()) {
        std::string piece;
        detokenizer.push(id, piece);
        EXPECT_EQ(well_formed_prefix(piece), piece.size());  // no character is ever split
        text += piece;
      }
      detokenizer.finish(text);
      EXPECT_EQ(text, c[skip ? "decoded_skip_special" : "decoded"].get<std::string>());
    }
  }
}

TEST(Detokenizer, RandomBytesEqualDecode) {
  const auto tokenizer = load(tokenizer_json());
  std::mt19937 rng(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<TokenId> ids;
    for (size_t i = rng() % 12; i > 0; --i) ids.push_back(static_cast<TokenId>(0x80 + rng() % 0x80));
    Detokenizer detokenizer(tokenizer, false);
    std::string text;
    for (const TokenId id : ids) detokenizer.push(id, text);
    detokenizer.finish(text);
    EXPECT_EQ(text, tokenizer->decode(ids, false));
  }
}

TEST(Detokenizer, HoldsBackAnUnfinishedCharacter) {
  Detokenizer detokenizer(load(tokenizer_json()), false);
  std::string text;
  for (const TokenId id : {0x61, 0xE4, 0xB8}) detokenizer.push(id, text);
  EXPECT_EQ(text, "a");
  detokenizer.push(0xAD, text);
  EXPECT_EQ(text, "a中");
  detokenizer.push(0xE4, text);
  detokenizer.finish(text);
  EXPECT_EQ(text, "a中\uFFFD");
}

TEST(Detokenizer, SkipsSpecialTokensAndUnknownIds) {
  auto json = tokenizer_json();
  json["added_tokens"] = {added_token(256, "<eos>", true), added_token(257, "<think>", false)};
  const auto tokenizer = load(json);
  for (const bool skip : {false, true}) {
    Detokenizer detokenizer(tokenizer, skip);
    std::string text;
    for (const TokenId id : std::vector<TokenId>{257, 'h', 9999, -5, 'i', 256}) detokenizer.push(id, text);
    detokenizer.finish(text);
    EXPECT_EQ(text, skip ? "<think>hi" : "<think>hi<eos>");
  }
}

TEST(Detokenizer, PrimedWithAPromptThatEndsInsideACharacter) {
  const auto tokenizer = load(tokenizer_json());
  Detokenizer detokenizer(tokenizer, false);
  detokenizer.prime(std::vector<TokenId>{'p', 'q', 0xF0, 0x9F});
  std::string text;
  for (const TokenId id : std::vector<TokenId>{0x98, 0x80, '!'}) detokenizer.push(id, text);
  EXPECT_EQ(text, "😀!");
  Detokenizer fresh(tokenizer, false);
  fresh.prime({});
  fresh.prime(std::vector<TokenId>{'p'});
  text.clear();
  fresh.push('q', text);
  EXPECT_EQ(text, "q");
}

}  // namespace
}  // namespace manta::text
