#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/weight_index.h"
#include "test_checkpoint.h"

namespace manta::model {
namespace {

using ::testing::HasSubstr;

Result<std::vector<TensorEntry>> parse(const std::string& header, size_t data_bytes) {
  const std::string start = with_length(header);
  return parse_safetensors_header(start, start.size() + data_bytes, "f.safetensors");
}

void expect_bad(const std::string& header, size_t data_bytes, std::initializer_list<const char*> words) {
  const auto tensors = parse(header, data_bytes);
  ASSERT_FALSE(tensors.ok()) << header;
  EXPECT_EQ(tensors.error().code, ErrorCode::kDataLoss);
  EXPECT_THAT(tensors.error().message, HasSubstr("f.safetensors"));
  for (const char* word : words) EXPECT_THAT(tensors.error().message, HasSubstr(word)) << header;
}

std::string tensor(const std::string& name, const std::string& shape, size_t begin, size_t end) {
  return "\"" + name + R"(":{"dtype":"BF16","shape":)" + shape + ",\"data_offsets\":[" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

TEST(Safetensors, ReadsTensorsInOrderOfTheirBytes) {
  const auto tensors =
      parse("{\"__metadata__\":{\"format\":\"pt\"}," + tensor("b", "[2,3]", 4, 16) + "," + tensor("a", "[2]", 0, 4) +
                "," + tensor("none", "[0,7]", 4, 4) + "," + tensor("scalar", "[]", 16, 18) + "}   ",
            18);
  ASSERT_TRUE(tensors.ok()) << tensors.error().message;
  ASSERT_EQ(tensors->size(), 4u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[1].name, "none");
  EXPECT_EQ((*tensors)[2].describe(), "BF16[2, 3]");
  EXPECT_EQ((*tensors)[3].num_bytes, 2u);
}

TEST(Safetensors, Truncated) {
  EXPECT_THAT(parse_safetensors_header("abc", 3, "f").error().message, HasSubstr("truncated"));
  const std::string start = with_length("{" + tensor("a", "[2]", 0, 4) + "}");
  for (size_t n = 0; n < start.size(); ++n) {
    EXPECT_FALSE(parse_safetensors_header(std::string_view(start).substr(0, n), n, "f").ok()) << n;
  }
  EXPECT_THAT(parse_safetensors_header(start, start.size() + 3, "f").error().message, HasSubstr("truncated"));
  EXPECT_TRUE(parse_safetensors_header(start, start.size() + 4, "f").ok());
}

TEST(Safetensors, HugeHeaderLength) {
  std::string start(16, '\xff');
  EXPECT_THAT(parse_safetensors_header(start, start.size(), "f").error().message, HasSubstr("18446744073709551615"));
}

TEST(Safetensors, BytesMustCoverTheFileOnce) {
  expect_bad("{" + tensor("a", "[2]", 0, 4) + "," + tensor("b", "[2]", 2, 6) + "}", 6, {"'b'", "overlaps", "'a'", "2"});
  expect_bad("{" + tensor("a", "[2]", 0, 4) + "," + tensor("b", "[2]", 6, 10) + "}", 10, {"'b'", "2 bytes before"});
  expect_bad("{" + tensor("a", "[2]", 0, 4) + "}", 9, {"last 5 bytes"});
  expect_bad("{" + tensor("a", "[2]", 0, 4) + "," + tensor("b", "[2]", 0, 4) + "}", 4, {"overlaps"});
}

TEST(Safetensors, SizesMustFit) {
  expect_bad("{" + tensor("a", "[3]", 0, 4) + "}", 4, {"'a'", "BF16[3]", "6 bytes", "hold 4"});
  expect_bad("{" + tensor("a", "[4294967296,4294967296,4294967296]", 0, 4) + "}", 4, {"more bytes than an address"});
  expect_bad("{" + tensor("a", "[-1]", 0, 4) + "}", 4, {"no size"});
  expect_bad("{" + tensor("a", "[1.5]", 0, 4) + "}", 4, {"no size"});
  expect_bad("{" + tensor("a", "[1,1,1,1,1,1,1,1,1]", 0, 2) + "}", 2, {"9 dimensions"});
  expect_bad("{" + tensor("a", "[2]", 4, 0) + "}", 4, {"[begin, end]"});
}

TEST(Safetensors, NamesAndFields) {
  expect_bad("{" + tensor("a", "[2]", 0, 4) + "," + tensor("a", "[2]", 4, 8) + "}", 8, {"'a'", "twice"});
  expect_bad(R"({"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}})", 1, {"'F4'"});
  expect_bad(R"({"a":{"dtype":"U8","shape":[1]}})", 1, {"data_offsets"});
  expect_bad(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, {"each once"});
  expect_bad(R"({"a":7})", 0, {"object"});
  expect_bad(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, {"0 bytes"});
  expect_bad("[]", 0, {"header"});
  expect_bad("", 0, {"header"});
  expect_bad(std::string(100000, '['), 0, {"header"});
  expect_bad(R"({"a\n":7})", 0, {"'a?'"});
}

TEST(SafetensorsFile, MapsTheEmbeddedModel) {
  const auto file = SafetensorsFile::open("models/tiny-v3/model-00001-of-000003.safetensors");
  ASSERT_TRUE(file.ok()) << file.error().message;
  const TensorEntry* entry = (*file)->find("model.embed_tokens.weight");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->describe(), "BF16[4096, 256]");
  EXPECT_EQ((*file)->bytes(*entry).size(), 4096u * 256 * 2);
  EXPECT_EQ((*file)->find("nothing"), nullptr);
}

TEST(SafetensorsFile, NotAFile) {
  const TempFolder folder;
  EXPECT_EQ(SafetensorsFile::open(folder.file("missing.safetensors")).error().code, ErrorCode::kNotFound);
  EXPECT_THAT(SafetensorsFile::open(folder.path()).error().message, HasSubstr("not a file"));
  write_file(folder.file("empty.safetensors"), "");
  EXPECT_THAT(SafetensorsFile::open(folder.file("empty.safetensors")).error().message, HasSubstr("truncated"));
}

TEST(WeightIndex, FindsTheFileOfATensor) {
  const auto index = load_weight_index("models/tiny-v3");
  ASSERT_TRUE(index.ok()) << index.error().message;
  EXPECT_EQ(index->files.size(), 3u);
  const int file = index->find("lm_head.weight");
  ASSERT_GE(file, 0);
  EXPECT_EQ(index->files[file], "model-00003-of-000003.safetensors");
  EXPECT_EQ(index->find("lm_head"), -1);
}

TEST(WeightIndex, StaysInItsFolder) {
  for (const char* file : {"../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".safetensors", "x.bin", "",
                           ".hidden.safetensors", "x\\u0000.safetensors"}) {
    const auto index = parse_weight_index(std::string(R"({"weight_map":{"t":")") + file + "\"}}", "i.json");
    ASSERT_FALSE(index.ok()) << file;
    EXPECT_THAT(index.error().message, HasSubstr("tensor 't'"));
  }
}

TEST(WeightIndex, Broken) {
  for (const char* text : {"", "{", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})",
                           R"({"weight_map":{"t":1}})", R"({"weight_map":{"":"x.safetensors"}})"}) {
    EXPECT_EQ(parse_weight_index(text, "i.json").error().code, ErrorCode::kDataLoss) << text;
  }
  EXPECT_THAT(
      parse_weight_index(R"({"weight_map":{"t":"x.safetensors","t":"y.safetensors"}})", "i.json").error().message,
      HasSubstr("twice"));
}

TEST(WeightIndex, NoWeightsAtAll) {
  const TempFolder folder;
  EXPECT_THAT(load_weight_index(folder.path()).error().message, HasSubstr("model.safetensors.index.json"));
}

}  // namespace
}  // namespace manta::model
