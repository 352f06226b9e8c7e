// The layer driver over whole models: random-weight relatives of DeepSeek-V3 against Hugging Face's float32 logits
// (tools/oracle/make_variants.py), and the same logits however a prompt is cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/driver.h"
#include "model/loader.h"
#include "model/safetensors.h"

namespace manta::model {
namespace {

constexpr double kRefBound = 2e-4;  // of a row's range, as for the embedded model
constexpr int kMaxTokens = 64;
constexpr int kBlockSize = 16;

template <typename T>
T take(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message);
  return std::move(result).value();
}
void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error().message);
}

template <typename T>
std::vector<T> golden(const std::string& folder, const std::string& name) {
  const auto file = take(SafetensorsFile::open(folder + "/golden.safetensors"));
  const TensorEntry* entry = file->find(name);
  if (!entry) throw std::runtime_error(folder + " has no golden " + name);
  const auto* values = reinterpret_cast<const T*>(file->bytes(*entry).data());
  return {values, values + entry->num_bytes / sizeof(T)};
}

// A model on a backend, one sequence in slot 0.
class OneSequence {
 public:
  OneSequence(const std::string& backend, const std::string& folder, bool mtp, int num_microbatches = 1) {
    backend_ = take(backend::make_backend(backend, {.num_threads = 2}));
    config_ = take(load_config(folder, ""));
    if (mtp) check(enable_mtp(config_));
    const backend::ModelShape& s = config_.shape;
    check(backend_->init(s, {.max_num_seqs = kMaxTokens,
                             .max_num_tokens = kMaxTokens,
                             .max_model_len = 128,
                             .num_speculative_tokens = mtp ? 1 : 0,
                             .num_microbatches = num_microbatches}));
    check(backend_->make_cache({.num_layers = s.num_layers(),
                                .num_blocks = 8,
                                .block_size = kBlockSize,
                                .kv_lora_rank = s.kv_lora_rank,
                                .qk_rope_head_dim = s.qk_rope_head_dim,
                                .dtype = backend_->caps().cache_dtype}));
    load(folder, num_microbatches);
  }

  // Logits of every row of `tokens`, `chunk` at a time; `split`: each step as two microbatches.
  std::vector<float> logits(const std::vector<TokenId>& tokens, int chunk, bool split = false) {
    const auto n = static_cast<int>(tokens.size());
    std::vector<float> out;
    for (int first = 0; first < n; first += chunk) {
      step(tokens, first, std::min(chunk, n - first), split ? 2 : 1);
      for (const backend::StepView& view : views_) {
        const float* rows = activations_[view.microbatch]->logits.as<float>();
        out.insert(out.end(), rows, rows + static_cast<int64_t>(view.num_logit_rows) * config_.shape.vocab_size);
      }
    }
    return out;
  }

  // Draft logits of all rows but the last.
  std::vector<float> mtp_logits(const std::vector<TokenId>& tokens) {
    const auto num_rows = static_cast<int>(tokens.size()) - 1;
    AskForDrafts ask(*this, num_rows);
    parts_.hook = &ask;
    driver_ = take(LayerDriver::make(parts_));
    step(tokens, 0, static_cast<int>(tokens.size()), 1);
    const float* rows = activations_[0]->logits.as<float>();
    return {rows, rows + static_cast<int64_t>(num_rows) * config_.shape.vocab_size};
  }

  const ModelConfig& config() const { return config_; }

 private:
  // Between sample() and mtp_draft(): asks for a draft after each of the first rows, and for none to be stored.
  struct AskForDrafts : LayerHook {
    AskForDrafts(OneSequence& m, int n) : model(m), num_rows(n) {}
    void before_attention(Lane&, int layer) override {
      if (layer != model.config_.shape.num_hidden_layers) return;
      backend::SampleView& sample = model.views_[0].sample;
      sample.num_slices = num_rows;
      for (int i = 0; i < num_rows; ++i) {
        sample.draft_row.as<int32_t>()[i] = i;
        sample.num_accepted.as<int32_t>()[i] = 0;
      }
    }
    void after_cache_write(Lane&, int) override {}
    OneSequence& model;
    int num_rows;
  };

  void load(const std::string& folder, int num_microbatches) {
    const backend::ModelShape& s = config_.shape;
    const int moe_rows = num_moe_rows(s);
    if (moe_rows > 0) map_ = take(ep::linear_expert_map(moe_rows, s.n_routed_experts, 0, 1, Epoch{1}));
    const auto source = take(open_checkpoint(folder, config_));
    weights_ = take(load_weights(config_, *source, *backend_, {.experts = {.map = &map_}}));
    parts_ = {backend_.get(), &config_, weights_.get(), &map_, nullptr, {}, &clock_, nullptr};
    if (moe_rows > 0) {
      transport_ = take(backend_->make_transport({}));
      check(transport_->configure(
          {Epoch{1}, 0, 1, {}},
          {s.hidden_size, s.num_experts_per_tok, s.n_routed_experts, s.n_routed_experts, backend_->caps().wire_dtype},
          kMaxTokens, num_microbatches));
      parts_.transport = transport_.get();
    }
    for (int i = 0; i < num_microbatches; ++i) {
      activations_.push_back(take(backend_->make_activations()));
      parts_.activations.push_back(activations_.back().get());
    }
    driver_ = take(LayerDriver::make(parts_));
  }

  void step(const std::vector<TokenId>& tokens, int first, int num_rows, int num_microbatches) {
    static const std::vector<BlockId> kBlocks = {5, 2, 7, 0, 1, 6};
    const SlotId slot = 0;
    const backend::SlotAdmission admission = {slot, tokens, static_cast<int>(tokens.size()), kBlocks, &greedy_};
    const backend::RowSlice slice = {.slot = slot,
                                     .num_rows = num_rows,
                                     .first_position = first,
                                     .samples = first + num_rows == static_cast<int>(tokens.size()),
                                     .prompt_logprobs = true};
    backend::StepInputs inputs = {.slices = {&slice, 1}, .num_microbatches = num_microbatches};
    if (first == 0) {
      inputs.admitted = {&admission, 1};
      if (admitted_) inputs.released = {&slot, 1};
      admitted_ = true;
    }
    check(backend_->plan(inputs, views_));
    check(backend_->run(nullptr, views_, [this](std::span<const backend::StepView> v) { driver_->run(v); }));
    take(backend_->finish());
    if (transport_) check(transport_->status());
  }

  std::unique_ptr<backend::Backend> backend_;
  ModelConfig config_;
  ep::ExpertMap map_;
  std::unique_ptr<Weights> weights_;
  std::unique_ptr<ep::ExpertTransport> transport_;
  std::vector<std::unique_ptr<backend::Activations>> activations_;
  StageClock clock_;
  DriverParts parts_;
  std::unique_ptr<LayerDriver> driver_;
  std::vector<backend::StepView> views_;
  sample::SamplingParams greedy_ = [] {
    sample::SamplingParams p;
    p.temperature = 0.0f;
    return p;
  }();
  bool admitted_ = false;
};

// The largest |a - b| of a row over the row's range, over all rows.
double logit_error(const std::vector<float>& a, const std::vector<float>& b, int vocab) {
  double worst = 0;
  for (size_t row = 0; row + vocab <= b.size(); row += vocab) {
    const auto [low, high] = std::minmax_element(b.begin() + row, b.begin() + row + vocab);
    for (int i = 0; i < vocab; ++i)
      worst = std::max(worst, std::fabs(double{a[row + i]} - b[row + i]) / (*high - *low));
  }
  return worst;
}

// Mean over the rows of KL(b || a).
double mean_kl(const std::vector<float>& a, const std::vector<float>& b, int vocab) {
  double total = 0;
  for (size_t row = 0; row + vocab <= b.size(); row += vocab) {
    const auto log_sum = [&](const std::vector<float>& x) {
      double sum = 0;
      for (int i = 0; i < vocab; ++i) sum += std::exp(double{x[row + i]});
      return std::log(sum);
    };
    const double za = log_sum(a), zb = log_sum(b);
    for (int i = 0; i < vocab; ++i) total += std::exp(b[row + i] - zb) * ((b[row + i] - zb) - (a[row + i] - za));
  }
  return total / (static_cast<double>(b.size()) / vocab);
}

class Relatives : public ::testing::TestWithParam<const char*> {
 protected:
  std::string folder() const { return std::string("tests/golden/variants/") + GetParam(); }
};

TEST_P(Relatives, RefEqualsHuggingFace) {
  const auto tokens = golden<TokenId>(folder(), "input_ids");
  const auto expected = golden<float>(folder(), "logits");
  OneSequence model("ref", folder(), /*mtp=*/false);
  const int vocab = model.config().shape.vocab_size;
  const auto got = model.logits(tokens, kMaxTokens);
  ASSERT_EQ(got.size(), expected.size());
  EXPECT_LT(logit_error(got, expected, vocab), kRefBound);
}

TEST_P(Relatives, RefDraftsLikeTheReferenceModule) {
  if (take(load_config(folder(), "")).num_nextn_predict_layers == 0) return;
  const auto tokens = golden<TokenId>(folder(), "input_ids");
  const auto expected = golden<float>(folder(), "mtp_logits");
  OneSequence model("ref", folder(), /*mtp=*/true);
  const auto got = model.mtp_logits(tokens);
  ASSERT_EQ(got.size(), expected.size());
  EXPECT_LT(logit_error(got, expected, model.config().shape.vocab_size), kRefBound);
}

TEST_P(Relatives, CpuIsClose) {
  const auto tokens = golden<TokenId>(folder(), "input_ids");
  const auto expected = golden<float>(folder(), "logits");
  OneSequence model("cpu", folder(), /*mtp=*/false);
  const auto got = model.logits(tokens, kMaxTokens);
  ASSERT_EQ(got.size(), expected.size());
  // Small models of random weights forgive nothing, so Hugging Face's own bf16 run is the measure.
  const float bf16_kl = golden<float>(folder(), "bf16_kl").at(0);
  const double kl = mean_kl(got, expected, model.config().shape.vocab_size);
  EXPECT_LT(kl, 1.5 * bf16_kl);
  RecordProperty("kl_over_hf_bf16", std::to_string(kl / bf16_kl));
}

// Bit for bit the same on both backends: chunked or whole, split into microbatches or not.
TEST_P(Relatives, HoweverThePromptIsCut) {
  const auto tokens = golden<TokenId>(folder(), "input_ids");
  for (const char* backend : {"ref", "cpu"}) {
    OneSequence model(backend, folder(), /*mtp=*/false, 2);
    const auto whole = model.logits(tokens, kMaxTokens);
    for (const int chunk : {1, 7, 16}) EXPECT_EQ(model.logits(tokens, chunk), whole) << backend << ", chunk " << chunk;
    EXPECT_EQ(model.logits(tokens, kMaxTokens, /*split=*/true), whole) << backend << ", split";
    EXPECT_EQ(model.logits(tokens, 9, /*split=*/true), whole) << backend << ", chunks of 9, split";
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, Relatives,
                         ::testing::Values("mtp_bf16", "no_q_lora", "no_groups", "v2_lite", "v2_groups", "head_sizes",
                                           "fp8", "no_yarn_tied_f32", "other_yarn", "dense"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace manta::model
