// How long is a decode step of one rank of EP32 with DeepSeek-V3's dimensions? 61 layers, 9 physical experts a MoE
// layer, dummy weights, a cache as full as the context says, and expert rows as EP32 would deliver them: B x 8 rows a
// rank, spread evenly or by --imbalance over its experts. No traffic: dispatch hands out rows that are there already.
// The baseline is the best public kernels, assembled and timed on one H200 (27.2, 34.6, 43.6 and 59.5 ms at 128 and 256
// sequences, 2048 and 4096 tokens of context).
//   manta_cuda_step_bench MODEL_FOLDER [--batch N] [--context N] [--fp8 none|dynamic] [--steps N] [--imbalance F]
//   [--eager]
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>

#include "backend/backend.h"
#include "model/driver.h"
#include "model/loader.h"

namespace {

using namespace manta;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string model = "models/tiny-v3";
  int batch = 128, context = 2048, steps = 24, layers = 61;
  std::string fp8 = "dynamic";
  double imbalance = 0.0;
  bool eager = false;
};

constexpr int kRanks = 32, kRedundant = 32, kLocal = 9, kTopK = 8, kBlock = 64;

template <typename T>
T take(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.error().message);
  return std::move(result).value();
}
void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error().message);
}
void check(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}

std::string overrides(int layers) {
  return fmt::format(
      R"({{"hidden_size":7168,"intermediate_size":18432,"moe_intermediate_size":2048,"num_hidden_layers":{},
    "num_attention_heads":128,"num_key_value_heads":128,"n_routed_experts":256,"n_shared_experts":1,"first_k_dense_replace":3,
    "num_experts_per_tok":8,"n_group":8,"topk_group":4,"q_lora_rank":1536,"kv_lora_rank":512,"qk_nope_head_dim":128,
    "qk_rope_head_dim":64,"v_head_dim":128,"vocab_size":129280,"max_position_embeddings":163840}})",
      layers);
}

void* device_memory(size_t bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, bytes));
  return data;
}

// Numbers of about 1, the same pieces again and again: zeros would draw less power than real values do.
void fill_random(void* to, size_t bytes) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> piece(1 << 22);
  for (uint16_t& x : piece) {
    const float f = normal(rng);
    uint32_t bits = 0;
    std::memcpy(&bits, &f, 4);
    x = static_cast<uint16_t>(bits >> 16);
  }
  for (size_t at = 0; at < bytes; at += piece.size() * 2) {
    check(cudaMemcpy(static_cast<char*>(to) + at, piece.data(), std::min(piece.size() * 2, bytes - at),
                     cudaMemcpyHostToDevice));
  }
}

class FanInHandle : public ep::DispatchHandle {};

// Every rank's rows are here already; what combine would bring back is not made.
class FanIn : public ep::ExpertTransport {
 public:
  FanIn(int batch, int hidden, double imbalance) : plane_((2 * batch + 127) / 128 * 128), hidden_(hidden) {
    std::vector<int32_t> rows(kLocal);
    for (int e = 0; e < kLocal; ++e) {
      const double share = 1.0 + imbalance * (kLocal > 1 ? 2.0 * e / (kLocal - 1) - 1.0 : 0.0);
      rows[e] = static_cast<int32_t>(std::lround(batch * 8.0 / kLocal * share));
    }
    const size_t bytes = static_cast<size_t>(kLocal) * plane_ * hidden * 2;
    in_ = device_memory(bytes);
    out_ = device_memory(bytes);
    fill_random(in_, bytes);
    num_rows_ = device_memory(kLocal * sizeof(int32_t));
    check(cudaMemcpy(num_rows_, rows.data(), kLocal * sizeof(int32_t), cudaMemcpyHostToDevice));
  }
  ep::ExpertLayout layout() const override { return ep::ExpertLayout::kMasked; }
  size_t buffer_bytes(const ep::MoeShape&, int, int) const override { return 0; }
  Status configure(const ep::EpTopology&, const ep::MoeShape&, int, int) override { return {}; }
  ep::DispatchHandle& handle(int) override { return handle_; }
  void dispatch_start(Lane&, ep::DispatchHandle&, const ep::Routed&) override {}
  void dispatch_finish(Lane&, ep::DispatchHandle&, ep::ExpertBatch& batch) override {
    batch = {};
    batch.layout = ep::ExpertLayout::kMasked;
    batch.hidden = make_tensor(in_, DType::kBF16, {kLocal, plane_, hidden_});
    batch.output = make_tensor(out_, DType::kBF16, {kLocal, plane_, hidden_});
    batch.num_rows = make_tensor(num_rows_, DType::kI32, {kLocal});
    batch.max_rows = static_cast<int>(plane_);
  }
  void combine_start(Lane&, ep::DispatchHandle&, const ep::ExpertBatch&) override {}
  void combine_finish(Lane&, ep::DispatchHandle&, Tensor) override {}
  void abort(Epoch) override {}
  Status status() const override { return {}; }

 private:
  int64_t plane_, hidden_;
  void *in_ = nullptr, *out_ = nullptr, *num_rows_ = nullptr;
  FanInHandle handle_;
};

class Rank {
 public:
  explicit Rank(const Options& o) : options_(o), fan_in_(o.batch, 7168, o.imbalance) {
    config_ = take(model::load_config(o.model, overrides(o.layers)));
    backend_ = take(backend::make_backend("cuda", {.fp8_activations = o.fp8}));
    const int blocks = o.context / kBlock + 2;
    check(backend_->init(config_.shape,
                         {.max_num_seqs = o.batch, .max_num_tokens = o.batch, .max_model_len = blocks * kBlock}));
    map_ = take(ep::linear_expert_map(model::num_moe_rows(config_.shape), 256, kRedundant, kRanks, {}));
    const auto begin = Clock::now();
    const auto source = model::make_dummy_weights(config_, 1, backend_->caps().makes_random_weights);
    weights_ = take(model::load_weights(config_, *source, *backend_, {.experts = {&map_, 0, kRanks}}));
    fmt::print("{}: weights {:.1f} GB in {:.1f} s\n", backend_->caps().description, weights_->num_bytes / 1e9,
               std::chrono::duration<double>(Clock::now() - begin).count());
    check(backend_->make_cache({.num_layers = config_.shape.num_layers(),
                                .num_blocks = o.batch * blocks,
                                .block_size = kBlock,
                                .kv_lora_rank = 512,
                                .qk_rope_head_dim = 64,
                                .dtype = DType::kBF16}));
    for (int i = 0; i < config_.shape.num_layers(); ++i) {
      const Tensor rows = backend_->cache_layer(i).rows;
      fill_random(rows.data, rows.num_elements() * 2);
    }
    act_ = take(backend_->make_activations());
    driver_ = take(model::LayerDriver::make({.backend = backend_.get(),
                                             .config = &config_,
                                             .weights = weights_.get(),
                                             .experts = &map_,
                                             .transport = &fan_in_,
                                             .activations = {act_.get()},
                                             .clock = &clock_}));
    admit(blocks);
  }

  // Milliseconds a step, of several with two on the device at a time.
  double steps(int count) {
    const backend::GraphKey key = {options_.batch, 1};
    const auto run = [&] {
      check(backend_->plan({.slices = slices_, .padded_num_tokens = options_.batch}, views_));
      check(backend_->run(options_.eager ? nullptr : &key, views_, [&](auto views) { driver_->run(views); }));
    };
    run();
    const auto begin = Clock::now();
    for (int i = 0; i < count; ++i) {
      run();
      take(backend_->finish());
    }
    take(backend_->finish());
    return std::chrono::duration<double, std::milli>(Clock::now() - begin).count() / (count + 1);
  }

  // Microseconds of each stage, called over and over in different layers.
  void stages() {
    check(backend_->plan({.slices = slices_, .padded_num_tokens = options_.batch}, views_));
    Lane& lane = backend_->lane(0);
    const backend::StepView& view = views_[0];
    backend::Activations& act = *act_;
    const int dense = config_.shape.first_k_dense_replace, layers = options_.layers;
    backend_->gather_inputs(lane, view);
    double total = 0;
    const auto time = [&](const char* name, int times, int calls, auto&& stage) {
      for (int i = 0; i < 3; ++i) stage(i);
      check(cudaDeviceSynchronize());
      const auto begin = Clock::now();
      for (int i = 0; i < calls; ++i) stage(i);
      check(cudaDeviceSynchronize());
      const double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / calls;
      total += us * times;
      fmt::print("  {:14} {:9.1f} us x {:2} = {:7.2f} ms\n", name, us, times, us * times / 1000);
    };
    const auto moe_layer = [&](int i) { return dense + i % (layers - dense); };
    ep::ExpertBatch batch;
    fan_in_.dispatch_finish(lane, fan_in_.handle(0), batch);
    time("attn_project", layers, 100, [&](int i) {
      backend::KvLayer cache = backend_->cache_layer(moe_layer(i));
      backend_->attn_project(lane, view, weights_->layers[moe_layer(i)].attn, act.hidden, cache, act);
    });
    time("attn_attend", layers, 100, [&](int i) {
      const backend::KvLayer cache = backend_->cache_layer(moe_layer(i));
      backend_->attn_attend(lane, view, weights_->layers[moe_layer(i)].attn, cache, act, act.hidden);
    });
    time("dense_mlp", dense, 30, [&](int i) {
      const auto& w = weights_->layers[i % dense];
      backend_->dense_mlp(lane, view, *w.post_attn_norm, w.dense_mlp, act, act.hidden);
    });
    time("route", layers - dense, 100, [&](int i) {
      const auto& w = weights_->layers[moe_layer(i)];
      backend_->route(lane, view, i % (layers - dense), *w.post_attn_norm, w.gate, map_, act, act.hidden);
    });
    time("shared_expert", layers - dense, 100,
         [&](int i) { backend_->shared_expert(lane, view, weights_->layers[moe_layer(i)].shared_expert, act); });
    time("experts", layers - dense, 100,
         [&](int i) { backend_->experts(lane, weights_->layers[moe_layer(i)].experts, batch); });
    time("merge", layers - dense, 100, [&](int) { backend_->merge(lane, view, act, act.hidden); });
    time("head", 1, 20, [&](int) { backend_->head(lane, view, weights_->head, act, act.hidden); });
    time("sample", 1, 20, [&](int) { backend_->sample(lane, view, act); });
    fmt::print("  {:14} {:>34.2f} ms\n", "sum", total / 1000);
    take(backend_->finish());
  }

 private:
  void admit(int blocks) {
    sampling_.temperature = 1.0f;
    sampling_.top_k = 50;
    std::vector<TokenId> tokens(options_.context);
    std::mt19937 rng(2);
    for (TokenId& t : tokens) t = static_cast<TokenId>(rng() % 129280);
    std::vector<std::vector<BlockId>> tables(options_.batch);
    std::vector<backend::SlotAdmission> admitted;
    for (int i = 0; i < options_.batch; ++i) {
      for (int b = 0; b < blocks; ++b) tables[i].push_back(b * options_.batch + i);
      admitted.push_back({i, tokens, options_.context, tables[i], &sampling_});
      slices_.push_back({.slot = i, .num_rows = 1, .samples = true, .max_seq_len = blocks * kBlock});
    }
    check(backend_->plan({.admitted = admitted}, views_));
    check(backend_->run(nullptr, views_, [](auto) {}));
    take(backend_->finish());
  }

  Options options_;
  model::ModelConfig config_;
  std::unique_ptr<backend::Backend> backend_;
  ep::ExpertMap map_;
  std::unique_ptr<model::Weights> weights_;
  FanIn fan_in_;
  std::unique_ptr<backend::Activations> act_;
  model::StageClock clock_;
  std::unique_ptr<model::LayerDriver> driver_;
  std::vector<backend::StepView> views_;
  std::vector<backend::RowSlice> slices_;
  sample::SamplingParams sampling_;
};

double baseline_ms(const Options& o) {
  if (o.batch == 128) return o.context == 2048 ? 27.2 : o.context == 4096 ? 34.6 : 0;
  if (o.batch == 256) return o.context == 2048 ? 43.6 : o.context == 4096 ? 59.5 : 0;
  return 0;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    const auto value = [&] { return std::string(i + 1 < argc ? argv[++i] : "0"); };
    if (a == "--batch")
      o.batch = std::stoi(value());
    else if (a == "--context")
      o.context = std::stoi(value());
    else if (a == "--steps")
      o.steps = std::stoi(value());
    else if (a == "--layers")
      o.layers = std::stoi(value());
    else if (a == "--fp8")
      o.fp8 = value();
    else if (a == "--imbalance")
      o.imbalance = std::stod(value());
    else if (a == "--eager")
      o.eager = true;
    else
      o.model = a;
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options o = parse(argc, argv);
  Rank rank(o);
  rank.steps(4);
  const double burst = rank.steps(4), ms = rank.steps(o.steps);
  fmt::print("B {} context {} fp8 {}: {:.2f} ms a step ({:.2f} in a burst), {:.0f} tokens/s", o.batch, o.context, o.fp8,
             ms, burst, o.batch * 1000 / ms);
  if (baseline_ms(o) > 0)
    fmt::print(", {:.2f} x the assembled public kernels' {:.1f} ms (H200)", ms / baseline_ms(o), baseline_ms(o));
  fmt::print("\n");
  rank.stages();
  return 0;
} catch (const std::exception& e) {
  fmt::print(stderr, "manta_cuda_step_bench: {}\n", e.what());
  return 1;
}
