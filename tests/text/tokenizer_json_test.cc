// What of tokenizer.json is taken, and what is refused by name.
#include "text/tokenizer_json.h"

#include <gtest/gtest.h>

#include "test_tokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace manta::text {
namespace {

using Json = nlohmann::ordered_json;

std::shared_ptr<const Tokenizer> make(const Json& json, const TokenizerConfig* config = nullptr) {
  auto tokenizer = Tokenizer::from_json(json.dump(), config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return tokenizer.ok() ? *tokenizer : nullptr;
}

// Expects a refusal whose message holds `name`.
void expect_refused(const Json& json, const std::string& name, ErrorCode code = ErrorCode::kUnimplemented) {
  const auto tokenizer = Tokenizer::from_json(json.dump(), nullptr);
  ASSERT_FALSE(tokenizer.ok()) << name;
  EXPECT_EQ(tokenizer.error().code, code) << tokenizer.error().message;
  EXPECT_NE(tokenizer.error().message.find(name), std::string::npos) << tokenizer.error().message;
}

std::vector<TokenId> ids_of(const Tokenizer& tokenizer, const std::string& text, bool add_special_tokens = false) {
  auto ids = tokenizer.encode(text, {.add_special_tokens = add_special_tokens});
  EXPECT_TRUE(ids.ok());
  return ids.ok() ? *ids : std::vector<TokenId>{-1};
}

using Ids = std::vector<TokenId>;

TEST(TokenizerJson, MergesInBothSpellings) {
  Json json = tokenizer_json({{"a", "b"}, {"ab", "c"}});
  EXPECT_EQ(ids_of(*make(json), "abcab"), (Ids{257, 256}));
  json["model"]["merges"] = {"a b", "ab c"};
  EXPECT_EQ(ids_of(*make(json), "abcab"), (Ids{257, 256}));
}

TEST(TokenizerJson, FeaturesThatChangeIdsAreRefusedByName) {
  const auto refused = [](const std::string& pointer, const Json& value, const std::string& name) {
    Json json = tokenizer_json();
    json[Json::json_pointer(pointer)] = value;
    expect_refused(json, name);
  };
  refused("/model/type", "Unigram", "Unigram");
  refused("/model/dropout", 0.1, "dropout");
  refused("/model/continuing_subword_prefix", "##", "continuing_subword_prefix");
  refused("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
  refused("/model/ignore_merges", true, "ignore_merges");
  refused("/model/novelty", 1, "novelty");
  refused("/novelty", 1, "novelty");
  refused("/truncation", Json::object(), "truncation");
  refused("/padding", Json::object(), "padding");
  refused("/normalizer", {{"type", "NFC"}}, "NFC");
  refused("/pre_tokenizer/add_prefix_space", true, "add_prefix_space");
  refused("/pre_tokenizer", {{"type", "Metaspace"}}, "Metaspace");
  refused("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array()}}, "ByteLevel");
  refused("/post_processor", {{"type", "RobertaProcessing"}}, "RobertaProcessing");
  refused("/decoder", {{"type", "WordPiece"}}, "WordPiece");
  Json split = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Removed"}, {"invert", false}};
  refused("/pre_tokenizer", split, "Removed");
  Json word = tokenizer_json();
  word["added_tokens"] = {added_token(256, "<w>", false)};
  word["added_tokens"][0]["single_word"] = true;
  expect_refused(word, "single_word");
}

TEST(TokenizerJson, ContradictionsAreErrors) {
  const auto bad = ErrorCode::kInvalidArgument;
  Json json = tokenizer_json({{"a", "b"}});
  json["model"]["merges"].push_back({"ab", "c"});
  expect_refused(json, "'abc'", bad);
  json = tokenizer_json();
  json["model"]["vocab"].erase("A");
  expect_refused(json, "0x41", bad);
  json = tokenizer_json();
  json["model"]["vocab"]["zz"] = 5;
  expect_refused(json, "'zz'", bad);
  json["model"]["vocab"]["zz"] = -1;
  expect_refused(json, "zz", bad);
  json["model"]["vocab"]["zz"] = int64_t{1} << 40;
  expect_refused(json, "zz", bad);
  json = tokenizer_json();
  json["added_tokens"] = {added_token(300, "<x>", true)};  // Hugging Face would number it 256
  expect_refused(json, "256", bad);
  json["added_tokens"] = {added_token(256, "", true)};
  expect_refused(json, "content", bad);
  json = tokenizer_json();
  json["model"]["merges"] = {"a b c"};
  expect_refused(json, "merge 0", bad);
  json["model"]["merges"] = {1};
  expect_refused(json, "merge 0", bad);
  EXPECT_FALSE(Tokenizer::from_json("", nullptr).ok());
  EXPECT_FALSE(Tokenizer::from_json("[]", nullptr).ok());
  EXPECT_FALSE(Tokenizer::from_json(std::string(5000, '['), nullptr).ok());
}

TEST(TokenizerJson, NormalizedAddedTokensComeSecond) {
  Json json = tokenizer_json();
  json["added_tokens"] = {added_token(256, "ab", false, false, false, true), added_token(257, "bc", false)};
  // Alone "ab" starts further left; but "bc" is not normalized and is looked for first.
  EXPECT_EQ(ids_of(*make(json), "abc"), (Ids{'a', 257}));
  EXPECT_EQ(ids_of(*make(json), "abd"), (Ids{256, 'd'}));
}

Json with_template(Json json) {
  json["added_tokens"] = {added_token(256, "<s>", true), added_token(257, "</s>", true)};
  json["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single",
                             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
                              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                              {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}}}},
                            {"pair", Json::array()},
                            {"special_tokens",
                             {{"<s>", {{"id", "<s>"}, {"ids", {256}}, {"tokens", {"<s>"}}}},
                              {"</s>", {{"id", "</s>"}, {"ids", {257}}, {"tokens", {"</s>"}}}}}}};
  return json;
}

TEST(TokenizerJson, TemplateProcessingAddsSpecialTokensWhenAsked) {
  const auto tokenizer = make(with_template(tokenizer_json()));
  EXPECT_EQ(ids_of(*tokenizer, "a"), (Ids{'a'}));
  EXPECT_EQ(ids_of(*tokenizer, "a", true), (Ids{256, 'a', 257}));
  EXPECT_EQ(ids_of(*tokenizer, "", true), (Ids{256, 257}));
}

TEST(TokenizerJson, LlamaClassesFollowAddBosToken) {
  Json json = with_template(tokenizer_json());
  TokenizerConfig config{.tokenizer_class = "LlamaTokenizerFast",
                         .bos_token = "<s>",
                         .eos_token = "</s>",
                         .add_bos_token = true,
                         .add_eos_token = false};
  EXPECT_EQ(ids_of(*make(json, &config), "a", true), (Ids{256, 'a'}));
  config.add_bos_token = false;
  EXPECT_EQ(ids_of(*make(json, &config), "a", true), (Ids{'a'}));
  config.tokenizer_class = "PreTrainedTokenizerFast";  // leaves the post-processor alone
  EXPECT_EQ(ids_of(*make(json, &config), "a", true), (Ids{256, 'a', 257}));
  config = {.tokenizer_class = "LlamaTokenizerFast", .bos_token = "<none>", .add_bos_token = true};
  EXPECT_FALSE(Tokenizer::from_json(json.dump(), &config).ok());
}

TEST(TokenizerConfig, ReadsBothSpellingsOfATokenAndTheDefaultTemplate) {
  const auto config = parse_tokenizer_config(R"({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
      "pad_token": null, "add_bos_token": true,
      "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->bos_token, "<s>");
  EXPECT_EQ(config->eos_token, "</s>");
  EXPECT_EQ(config->pad_token, "");
  EXPECT_EQ(config->add_bos_token, true);
  EXPECT_EQ(config->add_eos_token, std::nullopt);
  EXPECT_EQ(config->chat_template, "D");
  EXPECT_FALSE(parse_tokenizer_config(R"({"chat_template": [{"name": "tool_use", "template": "T"}]})").ok());
  EXPECT_FALSE(parse_tokenizer_config(R"({"bos_token": 3})").ok());
  EXPECT_FALSE(parse_tokenizer_config("{").ok());
  EXPECT_EQ(load_tokenizer_config("no/such/folder").error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace manta::text
