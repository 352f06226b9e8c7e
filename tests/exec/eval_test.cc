// The whole engine against Hugging Face: greedy texts of the golden prompts, and the accuracy on eval.jsonl.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "backend/cuda_library.h"
#include "eval_prompts.h"
#include "model/safetensors.h"
#include "serving.h"

namespace manta::exec {
namespace {

LocalExecutorOptions tiny(const std::string& device) {
  LocalExecutorOptions options;
  options.model = kTinyModel;
  options.device = device;
  options.max_num_seqs = 32;
  options.max_num_batched_tokens = 512;
  options.max_model_len = 4096;
  options.num_blocks = 512;
  options.num_speculative_tokens = 1;  // changes no token
  return options;
}

template <typename T>
std::vector<T> read(const model::SafetensorsFile& file, const std::string& name) {
  const model::TensorEntry* entry = file.find(name);
  EXPECT_NE(entry, nullptr) << name;
  if (entry == nullptr) return {};
  const auto bytes = file.bytes(*entry);
  const bool wide = std::is_integral_v<T> && entry->dtype == DType::kI64;
  std::vector<T> out;
  const size_t size = wide ? sizeof(int64_t) : sizeof(T);
  for (size_t i = 0; i + size <= bytes.size(); i += size) {
    if (wide) {
      int64_t value;
      std::memcpy(&value, bytes.data() + i, size);
      out.push_back(static_cast<T>(value));
    } else {
      T value;
      std::memcpy(&value, bytes.data() + i, size);
      out.push_back(value);
    }
  }
  return out;
}

struct GoldenPrompt {
  std::string name;
  std::vector<TokenId> input_ids, greedy_ids;
  std::vector<float> top20_logprobs;  // [48, 20], best first
};

std::vector<GoldenPrompt> golden_prompts() {
  auto file = model::SafetensorsFile::open("tests/golden/prompts.safetensors");
  EXPECT_TRUE(file.ok()) << file.error().message;
  std::vector<GoldenPrompt> out;
  for (const auto& prompt : nlohmann::json::parse(std::ifstream("tests/golden/prompts.json"))) {
    const std::string name = prompt["name"];
    if (!all_tests() && prompt["tokens"] > 700) continue;
    out.push_back({name, read<TokenId>(**file, name + ".input_ids"), read<TokenId>(**file, name + ".greedy_ids"),
                   read<float>(**file, name + ".top20_logprobs")});
  }
  EXPECT_EQ(out.size(), all_tests() ? 25u : 20u);
  return out;
}

std::vector<sched::Request> greedy(const std::vector<std::vector<TokenId>>& prompts, int max_tokens, bool ignore_eos) {
  std::vector<sched::Request> out;
  for (const auto& tokens : prompts) {
    sched::Request& request = out.emplace_back();
    request.tokens = tokens;
    request.num_prompt_tokens = static_cast<int>(tokens.size());
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    request.sampling.eos_token_ids = {kEos};
    request.sampling.ignore_eos = ignore_eos;
  }
  return out;
}

// Where there is a GPU, it too.
std::vector<std::string> devices(std::vector<std::string> names) {
  if (backend::resolve_device("auto") == "cuda") names.emplace_back("cuda");
  return names;
}

class AgainstHuggingFace : public ::testing::TestWithParam<std::string> {};

// How many of the first greedy tokens must be equal. float32 (ref): all. bf16 (cpu, cuda): up to the end token, while
// the two best of Hugging Face are further apart than bf16 can confuse.
size_t num_binding(const GoldenPrompt& prompt, const std::string& device) {
  if (device == "ref") return prompt.greedy_ids.size();
  constexpr float kGap = 0.05f;
  size_t n = 0;
  for (; n < prompt.greedy_ids.size(); ++n) {
    if (prompt.top20_logprobs[n * 20] - prompt.top20_logprobs[n * 20 + 1] <= kGap) break;
    if (prompt.greedy_ids[n] == kEos) return n + 1;
  }
  return n;
}

TEST_P(AgainstHuggingFace, GreedyTexts) {
  auto executor = make_local_executor(tiny(GetParam()));
  ASSERT_TRUE(executor.ok()) << executor.error().message;
  const auto prompts = golden_prompts();
  std::vector<std::vector<TokenId>> inputs;
  for (const auto& prompt : prompts) inputs.push_back(prompt.input_ids);
  Serving serving(std::move(executor).value(), true, 2);
  const auto got = serving.run(greedy(inputs, 48, true));
  size_t num_compared = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const size_t n = num_binding(prompts[i], GetParam());
    ASSERT_EQ(got[i].tokens.size(), prompts[i].greedy_ids.size());
    EXPECT_TRUE(std::equal(got[i].tokens.begin(), got[i].tokens.begin() + static_cast<ptrdiff_t>(n),
                           prompts[i].greedy_ids.begin()))
        << prompts[i].name << ": the first " << n << " tokens";
    num_compared += n;
  }
  EXPECT_GT(num_compared, 200u);
}

INSTANTIATE_TEST_SUITE_P(Devices, AgainstHuggingFace, ::testing::ValuesIn(devices({"cpu", "ref"})),
                         [](const auto& test) { return test.param; });

// Within half a point of Hugging Face's accuracy on all 600 prompts. Without MANTA_ALL_TESTS every tenth runs, on which
// a prompt weighs ten times as much and the bound is wider.
class Eval : public ::testing::TestWithParam<std::string> {};

TEST_P(Eval, AccuracyIsHuggingFaces) {
  const bool all = all_tests();
  const EvalPrompts eval;
  const auto prompts = eval.some(all ? 600 : 60);
  auto executor = make_local_executor(tiny(GetParam()));
  ASSERT_TRUE(executor.ok()) << executor.error().message;
  std::vector<std::vector<TokenId>> inputs;
  for (const auto& prompt : prompts) inputs.push_back(prompt.tokens);
  Serving serving(std::move(executor).value(), true, 2);
  const auto got = serving.run(greedy(inputs, 150, false));
  int num_right = 0;
  for (size_t i = 0; i < prompts.size(); ++i) num_right += eval.is_right(prompts[i], got[i].tokens);
  const double accuracy = 100.0 * num_right / static_cast<double>(prompts.size());
  const double hf = 100.0 * nlohmann::json::parse(std::ifstream("tests/golden/metrics.json"))["accuracy"].get<double>();
  std::printf("%s: accuracy %.2f %% of %zu prompts, Hugging Face %.2f %% of 600\n", GetParam().c_str(), accuracy,
              prompts.size(), hf);
  EXPECT_NEAR(accuracy, hf, all ? 0.5 : 8.0);
}

INSTANTIATE_TEST_SUITE_P(Devices, Eval, ::testing::ValuesIn(devices({"cpu"})),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace manta::exec
