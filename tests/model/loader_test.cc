#include "model/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "fake_backend.h"
#include "model/finite.h"
#include "model/safetensors.h"
#include "test_checkpoint.h"

namespace manta::model {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

const KeptWeight& kept(const backend::PackedWeightPtr& weight) {
  return dynamic_cast<const KeptWeight&>(*weight);
}

struct Loaded {
  FakeBackend backend;
  ModelConfig config;
  Result<std::unique_ptr<Weights>> weights = error(ErrorCode::kInternal, "not loaded");
};

// Loads rank `rank` of `size` from a folder.
void load(Loaded& l, const std::string& folder, bool mtp = false, int rank = 0, int size = 1, int redundant = 0) {
  auto config = load_config(folder, "");
  ASSERT_TRUE(config.ok()) << config.error().message;
  l.config = *config;
  if (mtp) {
    ASSERT_TRUE(enable_mtp(l.config).ok());
  }
  const auto map =
      ep::linear_expert_map(num_moe_rows(l.config.shape), l.config.shape.n_routed_experts, redundant, size, Epoch{1});
  ASSERT_TRUE(map.ok()) << map.error().message;
  const auto source = open_checkpoint(folder, l.config);
  if (!source.ok()) {
    l.weights = source.error();
    return;
  }
  l.weights = load_weights(l.config, **source, l.backend, {{&*map, rank, size}, 2, {}});
}

std::string load_error(const json& config, const TensorMap& tensors, bool mtp = false, int num_files = 1) {
  const TempFolder folder;
  write_checkpoint(folder.path(), config, tensors, num_files);
  Loaded l;
  load(l, folder.path(), mtp);
  return l.weights.ok() ? "loaded" : l.weights.error().message;
}

TEST(Loader, EmbeddedModelWithMtp) {
  Loaded l;
  load(l, "models/tiny-v3", /*mtp=*/true);
  ASSERT_TRUE(l.weights.ok()) << l.weights.error().message;
  const Weights& w = **l.weights;
  ASSERT_EQ(w.layers.size(), 6u);
  EXPECT_EQ(w.layers[0].dense_mlp.gate_proj->num_bytes(), 512u * 256 + 4 * 2 * 4);
  EXPECT_EQ(w.layers[0].gate.weight, nullptr);
  EXPECT_EQ(w.layers[5].experts.local.size(), 32u);
  EXPECT_EQ(kept(w.layers[1].gate.correction_bias).dtype, DType::kF32);
  EXPECT_EQ(kept(w.layers[1].attn.kv_a_proj).scale_bytes.size(), 5u * 2 * 4);
  EXPECT_EQ(kept(w.layers[1].attn.kv_b_proj).role, backend::WeightRole::kKvUp);
  EXPECT_EQ(kept(w.mtp.eh_proj).shape, (std::vector<int64_t>{256, 512}));
  // All of the checkpoint but the MTP module's copies of embedding and head.
  EXPECT_EQ(w.num_read_bytes, 36872552u - 2 * 4096 * 256 * 2);
  EXPECT_EQ(w.num_bytes, w.num_read_bytes);
}

TEST(Loader, BytesArriveUnchanged) {
  const TensorMap tensors = dummy_tensors(small_config());
  for (const int num_files : {1, 3}) {
    const TempFolder folder;
    write_checkpoint(folder.path(), small_config(), tensors, num_files);
    Loaded l;
    load(l, folder.path(), /*mtp=*/true);
    ASSERT_TRUE(l.weights.ok()) << l.weights.error().message;
    const Weights& w = **l.weights;
    EXPECT_EQ(kept(w.embedding).bytes, tensors.at("model.embed_tokens.weight").bytes);
    EXPECT_EQ(kept(w.head.head).bytes, tensors.at("lm_head.weight").bytes);
    EXPECT_EQ(kept(w.head.norm).bytes, tensors.at("model.norm.weight").bytes);
    EXPECT_EQ(kept(w.mtp.hnorm).bytes, tensors.at("model.layers.2.hnorm.weight").bytes);
    EXPECT_EQ(kept(w.mtp.norm).bytes, tensors.at("model.layers.2.shared_head.norm.weight").bytes);
    for (int e = 0; e < 4; ++e) {
      const std::string prefix = "model.layers.1.mlp.experts." + std::to_string(e);
      EXPECT_EQ(kept(w.layers[1].experts.local[e].down_proj).bytes, tensors.at(prefix + ".down_proj.weight").bytes);
      EXPECT_EQ(kept(w.layers[1].experts.local[e].up_proj).bytes, tensors.at(prefix + ".up_proj.weight").bytes);
    }
  }
}

TEST(Loader, OnlyTheExpertsOfThisRank) {
  const TensorMap tensors = dummy_tensors(small_config());
  const TempFolder folder;
  write_checkpoint(folder.path(), small_config(), tensors, 2);
  // 4 experts + 2 redundant on 2 ranks: rank 1 holds slots 3, 4, 5 = experts 3, 0, 1.
  Loaded l;
  load(l, folder.path(), /*mtp=*/false, 1, 2, 2);
  ASSERT_TRUE(l.weights.ok()) << l.weights.error().message;
  const auto& local = (*l.weights)->layers[1].experts.local;
  ASSERT_EQ(local.size(), 3u);
  const int expected[] = {3, 0, 1};
  for (int slot = 0; slot < 3; ++slot) {
    const std::string name = "model.layers.1.mlp.experts." + std::to_string(expected[slot]) + ".gate_proj.weight";
    EXPECT_EQ(kept(local[slot].gate_proj).bytes, tensors.at(name).bytes) << slot;
  }
}

TEST(Loader, OthersExpertsAreNotLookedAt) {
  TensorMap tensors = dummy_tensors(small_config());
  tensors.at("model.layers.1.mlp.experts.0.up_proj.weight").bytes.assign(4 * 8 * 2, '\xff');  // NaN, on rank 0
  const TempFolder folder;
  write_checkpoint(folder.path(), small_config(), tensors);
  Loaded rank0, rank1;
  load(rank1, folder.path(), false, 1, 2);
  EXPECT_TRUE(rank1.weights.ok());
  load(rank0, folder.path(), false, 0, 2);
  EXPECT_THAT(rank0.weights.error().message, AllOf(HasSubstr("experts.0.up_proj"), HasSubstr("NaN")));
}

TEST(Loader, Missing) {
  TensorMap tensors = dummy_tensors(small_config());
  tensors.erase("model.layers.0.self_attn.o_proj.weight");
  EXPECT_THAT(load_error(small_config(), tensors),
              AllOf(HasSubstr("model.layers.0.self_attn.o_proj.weight"), HasSubstr("missing")));
}

TEST(Loader, MissingInTheFileTheIndexNames) {
  const TempFolder folder;
  TensorMap tensors = dummy_tensors(small_config());
  write_checkpoint(folder.path(), small_config(), tensors, 2);
  write_file(folder.file("model-1.safetensors"), safetensors_bytes({{"x", {"U8", {1}, "a"}}}));
  Loaded l;
  load(l, folder.path());
  EXPECT_THAT(l.weights.error().message, AllOf(HasSubstr("model-1.safetensors"), HasSubstr("index says")));
}

TEST(Loader, Extra) {
  TensorMap tensors = dummy_tensors(small_config());
  tensors["model.layers.1.self_attn.q_norm.weight"] = {"BF16", {1}, "aa"};
  EXPECT_THAT(load_error(small_config(), tensors), AllOf(HasSubstr("1 tensors"), HasSubstr("q_norm")));
  tensors = dummy_tensors(small_config());
  tensors["model.layers.1.mlp.experts.4.up_proj.weight"] = {"BF16", {4, 8}, std::string(64, 'a')};
  EXPECT_THAT(load_error(small_config(), tensors), HasSubstr("experts.4.up_proj"));
  tensors = dummy_tensors(small_config());
  tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = {"F32", {1}, "aaaa"};
  EXPECT_EQ(load_error(small_config(), tensors), "loaded");
}

TEST(Loader, MisShaped) {
  TensorMap tensors = dummy_tensors(small_config());
  auto& norm = tensors.at("model.layers.0.input_layernorm.weight");
  norm = {"BF16", {9}, std::string(18, 'a')};
  EXPECT_THAT(load_error(small_config(), tensors),
              AllOf(HasSubstr("model.safetensors"), HasSubstr("input_layernorm.weight"), HasSubstr("[8]"),
                    HasSubstr("found BF16[9]")));
  norm = {"I32", {8}, std::string(32, 'a')};
  EXPECT_THAT(load_error(small_config(), tensors), HasSubstr("found I32[8]"));
}

TEST(Loader, NotFinite) {
  for (const auto& [dtype, one] : std::map<std::string, std::string>{{"F32", std::string("\x00\x00\xc0\x7f", 4)},
                                                                     {"BF16", std::string("\x80\x7f", 2)}}) {
    TensorMap tensors = dummy_tensors(small_config());
    auto& head = tensors.at("lm_head.weight");
    head.dtype = dtype;
    head.bytes = std::string(16 * 8 * one.size(), '\0');
    head.bytes.replace(77 * one.size(), one.size(), one);
    EXPECT_THAT(load_error(small_config(), tensors), AllOf(HasSubstr("lm_head.weight"), HasSubstr("value 77")));
  }
}

json fp8_config() {
  json config = small_config();
  config["quantization_config"] = {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
  return config;
}

TEST(Loader, Fp8NeedsItsScales) {
  const TensorMap good = dummy_tensors(fp8_config());
  EXPECT_EQ(load_error(fp8_config(), good, /*mtp=*/true), "loaded");
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  TensorMap tensors = good;
  tensors.erase(name + "_scale_inv");
  EXPECT_THAT(load_error(fp8_config(), tensors), AllOf(HasSubstr(name + "_scale_inv"), HasSubstr("missing")));
  tensors = good;
  tensors.at(name + "_scale_inv") = {"F32", {1, 2}, std::string(8, 'a')};
  EXPECT_THAT(load_error(fp8_config(), tensors), HasSubstr("expected F32[1, 1], found F32[1, 2]"));
  tensors = good;
  tensors.at(name) = {"BF16", {12, 8}, std::string(192, 'a')};
  EXPECT_THAT(load_error(fp8_config(), tensors), HasSubstr("only F8_E4M3 has one"));
  tensors = good;
  tensors.at(name).bytes[5] = '\x7f';
  EXPECT_THAT(load_error(fp8_config(), tensors), AllOf(HasSubstr(name), HasSubstr("value 5")));
  tensors = good;  // a projection that the quantiser left alone
  tensors.at(name) = {"BF16", {12, 8}, std::string(192, 'a')};
  tensors.erase(name + "_scale_inv");
  EXPECT_EQ(load_error(fp8_config(), tensors), "loaded");
  EXPECT_THAT(load_error(small_config(), good), HasSubstr("_scale_inv")) << "without quantization_config";
}

TEST(Loader, MtpSharesEmbeddingAndHead) {
  TensorMap tensors = dummy_tensors(small_config());
  tensors.at("model.layers.2.shared_head.head.weight").bytes[200] ^= 1;
  EXPECT_EQ(load_error(small_config(), tensors, /*mtp=*/false), "loaded");
  EXPECT_THAT(load_error(small_config(), tensors, /*mtp=*/true), HasSubstr("shared_head.head"));
}

TEST(Loader, TiedHeadComesFromTheEmbedding) {
  json config = small_config();
  config["tie_word_embeddings"] = true;
  const TempFolder folder;
  const TensorMap tensors = dummy_tensors(config);
  EXPECT_EQ(tensors.count("lm_head.weight"), 0u);
  write_checkpoint(folder.path(), config, tensors);
  Loaded l;
  load(l, folder.path());
  ASSERT_TRUE(l.weights.ok()) << l.weights.error().message;
  EXPECT_EQ(kept((*l.weights)->head.head).bytes, kept((*l.weights)->embedding).bytes);
}

TEST(Loader, BiasIsWidened) {
  TensorMap tensors = dummy_tensors(small_config());
  tensors.at("model.layers.1.mlp.gate.e_score_correction_bias") = {
      "BF16", {4}, std::string("\x80\x3f\x00\xc0\0\0\0\0", 8)};
  const TempFolder folder;
  write_checkpoint(folder.path(), small_config(), tensors);
  Loaded l;
  load(l, folder.path());
  ASSERT_TRUE(l.weights.ok()) << l.weights.error().message;
  float bias[4];
  const KeptWeight& weight = kept((*l.weights)->layers[1].gate.correction_bias);
  ASSERT_EQ(weight.bytes.size(), sizeof bias);
  std::memcpy(bias, weight.bytes.data(), sizeof bias);
  EXPECT_EQ(bias[0], 1.0f);
  EXPECT_EQ(bias[1], -2.0f);
}

TEST(Loader, BytesNeedNoAlignment) {
  const TensorMap tensors = dummy_tensors(small_config());
  const TempFolder folder;
  write_checkpoint(folder.path(), small_config(), tensors, 2);
  for (const char* name : {"model-0.safetensors", "model-1.safetensors"}) {
    const auto file = SafetensorsFile::open(folder.file(name));
    ASSERT_TRUE(file.ok());
    TensorMap shifted = {{"a", {"U8", {1}, "x"}}};  // one odd byte first, which the index does not name
    for (const TensorEntry& entry : (*file)->tensors()) {
      shifted[entry.name] = {entry.dtype_name, entry.shape, std::string((*file)->bytes(entry))};
    }
    write_file(folder.file(name), safetensors_bytes(shifted));
  }
  Loaded l;
  load(l, folder.path());
  ASSERT_TRUE(l.weights.ok()) << l.weights.error().message;
  EXPECT_EQ(kept((*l.weights)->embedding).bytes, tensors.at("model.embed_tokens.weight").bytes);
}

TEST(Loader, PackFailureEndsTheLoad) {
  const TempFolder folder;
  write_checkpoint(folder.path(), small_config(), dummy_tensors(small_config()));
  Loaded l;
  l.backend.refuse_role_of = "BF16[16, 8]";
  load(l, folder.path());
  EXPECT_EQ(l.weights.error().code, ErrorCode::kResourceExhausted);
}

TEST(Loader, ReportsProgressToTheEnd) {
  const TempFolder folder;
  write_checkpoint(folder.path(), small_config(), dummy_tensors(small_config()));
  const ModelConfig config = config_of(small_config());
  const auto source = open_checkpoint(folder.path(), config);
  ASSERT_TRUE(source.ok());
  const auto map = ep::linear_expert_map(1, 4, 0, 1, Epoch{1});
  FakeBackend backend;
  std::vector<Progress> seen;
  const auto weights =
      load_weights(config, **source, backend, {{&*map, 0, 1}, 2, [&](const Progress& p) { seen.push_back(p); }});
  ASSERT_TRUE(weights.ok());
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(seen.back().finished);
  EXPECT_EQ(seen.back().bytes_done, (*weights)->num_read_bytes);
  EXPECT_EQ(seen.back().bytes_total, (*weights)->num_read_bytes);
}

TEST(Loader, OneExpertAlone) {
  const TempFolder folder;
  const TensorMap tensors = dummy_tensors(small_config());
  write_checkpoint(folder.path(), small_config(), tensors);
  const ModelConfig config = config_of(small_config());
  const auto source = open_checkpoint(folder.path(), config);
  FakeBackend backend;
  const auto expert = load_expert(config, **source, backend, 1, 2);
  ASSERT_TRUE(expert.ok()) << expert.error().message;
  EXPECT_EQ(kept(expert->down_proj).bytes, tensors.at("model.layers.1.mlp.experts.2.down_proj.weight").bytes);
  EXPECT_FALSE(load_expert(config, **source, backend, 0, 2).ok());
  EXPECT_FALSE(load_expert(config, **source, backend, 1, 4).ok());
}

TEST(Loader, MapMustFitTheModel) {
  const ModelConfig config = config_of(small_config());
  const auto map = ep::linear_expert_map(2, 4, 0, 1, Epoch{1});
  Weights weights;
  EXPECT_THAT(list_weights(config, {&*map, 0, 1}, weights).error().message, HasSubstr("1 MoE layers"));
  EXPECT_FALSE(list_weights(config, {}, weights).ok());
}

// ---- dummy weights ----

float bf16(const std::string& bytes, size_t i) {
  uint16_t half = 0;
  std::memcpy(&half, bytes.data() + 2 * i, 2);
  const uint32_t word = static_cast<uint32_t>(half) << 16;
  float value = 0;
  std::memcpy(&value, &word, 4);
  return value;
}

TEST(DummyWeights, SameNameSameBytes) {
  const TensorMap a = dummy_tensors(fp8_config(), 7), b = dummy_tensors(fp8_config(), 7),
                  c = dummy_tensors(fp8_config(), 8);
  for (const auto& [name, tensor] : a) EXPECT_EQ(tensor.bytes, b.at(name).bytes) << name;
  const std::string expert = "model.layers.1.mlp.experts.1.up_proj.weight";
  EXPECT_NE(a.at(expert).bytes, c.at(expert).bytes);
  EXPECT_NE(a.at(expert).bytes, a.at("model.layers.1.mlp.experts.2.up_proj.weight").bytes);
}

TEST(DummyWeights, ValuesAreFiniteAndOfTheRightSize) {
  json config = small_config();
  config.merge_patch({{"hidden_size", 256}, {"vocab_size", 512}});
  const TensorMap plain = dummy_tensors(config);
  const std::string& head = plain.at("lm_head.weight").bytes;
  double squares = 0;
  for (size_t i = 0; i < head.size() / 2; ++i) squares += bf16(head, i) * bf16(head, i);
  EXPECT_NEAR(std::sqrt(squares / (512 * 256)), 1.0 / 16, 0.003);
  config["quantization_config"] = fp8_config()["quantization_config"];
  for (const auto& [name, tensor] : dummy_tensors(config)) {
    const DType dtype = tensor.dtype == "F32" ? DType::kF32 : tensor.dtype == "BF16" ? DType::kBF16 : DType::kF8E4M3;
    EXPECT_EQ(first_not_finite(tensor.bytes, dtype), -1) << name;
  }
}

TEST(Finite, FindsTheFirstBadValueAnywhere) {
  for (const size_t n : {1, 255, 256, 257, 1000}) {
    std::string bytes(n, '\x7e');
    EXPECT_EQ(first_not_finite(bytes, DType::kF8E4M3), -1);
    for (const size_t at : {size_t{0}, n / 2, n - 1}) {
      std::string bad = bytes;
      bad[at] = '\xff';
      EXPECT_EQ(first_not_finite(bad, DType::kF8E4M3), static_cast<int64_t>(at)) << n;
    }
  }
  EXPECT_EQ(first_not_finite("", DType::kF32), -1);
}

}  // namespace
}  // namespace manta::model
