// The embedded model's tokenizer against the values of Hugging Face `tokenizers` in tests/golden.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "test_tokenizer.h"

namespace manta::text {
namespace {

const std::shared_ptr<const Tokenizer>& tiny() {
  static const auto tokenizer = [] {
    auto loaded = Tokenizer::load("models/tiny-v3");
    EXPECT_TRUE(loaded.ok()) << loaded.error().message;
    return loaded.ok() ? *loaded : nullptr;
  }();
  return tokenizer;
}

TEST(Tokenizer, EncodesAsHuggingFace) {
  const auto cases = read_jsonl("tests/golden/tokenizer_cases.jsonl");
  ASSERT_EQ(cases.size(), 431u);
  for (const auto& c : cases) {
    const auto text = c["text"].get<std::string>();
    const auto ids = tiny()->encode(text);
    ASSERT_TRUE(ids.ok()) << ids.error().message;
    EXPECT_EQ(*ids, c["ids"].get<std::vector<TokenId>>()) << c["text"];
    EXPECT_EQ(tiny()->decode(*ids, false), c["decoded"].get<std::string>());
  }
}

TEST(Tokenizer, DecodesAsHuggingFace) {
  const auto cases = read_jsonl("tests/golden/decode_cases.jsonl");
  ASSERT_EQ(cases.size(), 80u);
  for (const auto& c : cases) {
    const auto ids = c["ids"].get<std::vector<TokenId>>();
    EXPECT_EQ(tiny()->decode(ids, false), c["decoded"].get<std::string>()) << c["ids"];
    EXPECT_EQ(tiny()->decode(ids, true), c["decoded_skip_special"].get<std::string>()) << c["ids"];
  }
}

TEST(Tokenizer, EncodesChatTextsAsHuggingFace) {
  const auto cases = read_jsonl("tests/golden/chat_cases.jsonl");
  ASSERT_EQ(cases.size(), 60u);
  for (const auto& c : cases) {
    const auto ids = tiny()->encode(c["text"].get<std::string>());
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, c["ids"].get<std::vector<TokenId>>()) << c["text"];
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  EXPECT_EQ(tiny()->vocab_size(), 4096);
  EXPECT_EQ(tiny()->id_to_token(0), "<｜begin▁of▁sentence｜>");
  EXPECT_EQ(tiny()->token_to_id("<｜begin▁of▁sentence｜>"), 0);
  EXPECT_TRUE(tiny()->is_special(0));
  EXPECT_EQ(tiny()->token_bytes(223), " ");
  EXPECT_EQ(tiny()->id_to_token(223), "Ġ");
  EXPECT_FALSE(tiny()->is_special(223));
  EXPECT_EQ(tiny()->token_to_id("no such token"), std::nullopt);
  for (TokenId id = 0; id < tiny()->vocab_size(); ++id) {
    ASSERT_TRUE(tiny()->has_token(id));
    EXPECT_EQ(tiny()->token_to_id(tiny()->id_to_token(id)), id);
  }
  for (const TokenId id : {-1, 4096, INT32_MAX, INT32_MIN}) {
    EXPECT_FALSE(tiny()->has_token(id));
    EXPECT_EQ(tiny()->id_to_token(id), "");
    EXPECT_EQ(tiny()->token_bytes(id), "");
    EXPECT_FALSE(tiny()->is_special(id));
    EXPECT_EQ(tiny()->decode(std::vector<TokenId>{id, 67}, false), "a");
  }
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const auto ids = tiny()->encode("abc\xED\xA0\x80");  // a lone surrogate
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(ids.error().message.find("byte 3"), std::string::npos) << ids.error().message;
  EXPECT_TRUE(tiny()->encode(std::string_view("a\0b", 3)).ok());
}

TEST(Tokenizer, LoadsAFileOrAFolder) {
  const auto file = Tokenizer::load("models/tiny-v3/tokenizer.json");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->vocab_size(), 4096);
  EXPECT_EQ(Tokenizer::load("models/no-such-model").error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(Tokenizer::load("models/tiny-v3/config.json").ok());
}

TEST(Tokenizer, LongRunsDecodeBackToThemselves) {
  // Quadratic work on 1 MB would be 10^12 steps: the test would not come to an end.
  for (const std::string unit : {"a", " ", "\n", "!", "7", "\xE4\xB8\xAD", "\xCC\x81", "ab", " \t", "<", "<｜", "'s"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    const auto ids = tiny()->encode(text);
    ASSERT_TRUE(ids.ok()) << ids.error().message;
    EXPECT_EQ(tiny()->decode(*ids, false), text);
  }
}

TEST(Tokenizer, ThreadsShareOne) {
  const auto cases = read_jsonl("tests/golden/tokenizer_cases.jsonl");
  std::vector<std::thread> threads;
  std::vector<int> num_wrong(4, 0);
  for (int& wrong : num_wrong) {
    threads.emplace_back([&cases, &wrong] {
      for (int round = 0; round < 5; ++round) {
        for (const auto& c : cases) {
          const auto ids = tiny()->encode(c["text"].get<std::string>());
          wrong += !ids.ok() || *ids != c["ids"].get<std::vector<TokenId>>();
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace manta::text
