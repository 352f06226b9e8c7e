// How many tokens per second does a backend decode with the embedded model? Against Hugging Face's bf16 run on two
// cores (tests/golden/hf_cpu_speed.json; 64 streams are compared with its 16), same lengths: random prompts of 128
// tokens, 128 greedy tokens each. Model and backend only: no scheduler, no server.
//   manta_cpu_decode_bench [--backend cpu|ref] [--threads N] [--tokens N] [--streams N] [--prompt N]
//                          [--batch-invariant 0|1]                                          from the repository's root
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <vector>

#include "backend/backend.h"
#include "model/driver.h"
#include "open_model.h"

namespace {

using namespace manta;
using Clock = std::chrono::steady_clock;

constexpr const char* kModel = "models/tiny-v3";
constexpr int kBlockSize = 64, kMaxLen = 4096, kChunk = 2048;

struct Options {
  std::string backend = "cpu";
  int threads = 2;
  int tokens = 128;
  int streams = 0;  // 0: 1, 16 and 64
  int prompt = 128;
  bool batch_invariant = true;
};

using backend::testing::check;
using backend::testing::open_model;
using backend::testing::take;

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// A loaded model, and steps over it.
class Engine {
 public:
  Engine(const Options& options, int streams)
      : streams_(streams), prompt_tokens_(options.prompt), blocks_((options.prompt + options.tokens) / kBlockSize + 1) {
    auto backend = take(backend::make_backend(
        options.backend, {.num_threads = options.threads, .batch_invariant = options.batch_invariant}));
    model_ = open_model(std::move(backend), kModel,
                        {.limits = {.max_num_seqs = streams, .max_num_tokens = kChunk, .max_model_len = kMaxLen},
                         .num_blocks = streams * blocks_,
                         .block_size = kBlockSize,
                         .load_threads = options.threads});
    driver_ = model_->make_driver();
  }

  // Seconds of prefill: all prompts, as many whole ones as a step of kChunk rows holds.
  double prefill() {
    std::mt19937 rng(3);
    std::vector<TokenId> prompt(prompt_tokens_);
    sample::SamplingParams greedy;
    greedy.temperature = 0.0f;
    const auto begin = Clock::now();
    for (int first = 0; first < streams_; first += kChunk / prompt_tokens_) {
      const int count = std::min(kChunk / prompt_tokens_, streams_ - first);
      std::vector<std::vector<TokenId>> prompts(count, prompt);
      std::vector<std::vector<BlockId>> blocks(count);
      std::vector<SlotId> released;
      std::vector<backend::SlotAdmission> admitted;
      std::vector<backend::RowSlice> slices;
      for (int i = 0; i < count; ++i) {
        for (TokenId& t : prompts[i]) t = static_cast<TokenId>(3 + rng() % 4000);
        for (int b = 0; b < blocks_; ++b) blocks[i].push_back((first + i) * blocks_ + b);
        if (used_) released.push_back(first + i);
        admitted.push_back({first + i, prompts[i], prompt_tokens_, blocks[i], &greedy});
        slices.push_back({.slot = first + i,
                          .num_rows = prompt_tokens_,
                          .first_position = 0,
                          .samples = true,
                          .max_seq_len = prompt_tokens_});
      }
      step({.released = released, .admitted = admitted, .slices = slices});
    }
    used_ = true;
    return seconds_since(begin);
  }

  // Seconds of `steps` decode steps of all streams.
  double decode(int steps) {
    std::vector<backend::RowSlice> slices;
    for (int i = 0; i < streams_; ++i) slices.push_back({.slot = i, .num_rows = 1, .max_seq_len = kMaxLen});
    const auto begin = Clock::now();
    for (int i = 0; i < steps; ++i) step({.slices = slices});
    return seconds_since(begin);
  }

  const backend::Caps& caps() const { return model_->backend->caps(); }
  double load_seconds() const { return model_->load_seconds; }

 private:
  void step(const backend::StepInputs& inputs) {
    check(model_->backend->plan(inputs, views_));
    check(model_->backend->run(nullptr, views_,
                               [this](std::span<const backend::StepView> views) { driver_->run(views); }));
    take(model_->backend->finish());
  }

  int streams_, prompt_tokens_, blocks_;
  bool used_ = false;  // the slots hold requests
  std::unique_ptr<backend::testing::OpenModel> model_;
  std::unique_ptr<model::LayerDriver> driver_;
  std::vector<backend::StepView> views_;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--backend") == 0) o.backend = argv[i + 1];
    if (std::strcmp(argv[i], "--threads") == 0) o.threads = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--tokens") == 0) o.tokens = std::clamp(std::atoi(argv[i + 1]), 1, kMaxLen / 2);
    if (std::strcmp(argv[i], "--prompt") == 0) o.prompt = std::clamp(std::atoi(argv[i + 1]), 1, kMaxLen / 2);
    if (std::strcmp(argv[i], "--batch-invariant") == 0) o.batch_invariant = std::atoi(argv[i + 1]) != 0;
    if (std::strcmp(argv[i], "--streams") == 0) o.streams = std::atoi(argv[i + 1]);
  }
  return o;
}

// Hugging Face's bf16 figures for a number of streams.
nlohmann::json hf_bf16(int streams) {
  nlohmann::json all;
  std::ifstream("tests/golden/hf_cpu_speed.json") >> all;
  for (const auto& row : all) {
    if (row.at("dtype") == "bfloat16" && row.at("batch") == (streams >= 16 ? 16 : 1)) return row;
  }
  throw std::runtime_error("tests/golden/hf_cpu_speed.json: no bfloat16 row");
}

int run(const Options& options) {
  std::vector<int> cases{1, 16, 64};
  if (options.streams > 0) cases = {options.streams};
  // busy: cores that decoding kept busy on average; well below the threads means that the machine had other work.
  fmt::print("{:>8} {:>9} {:>14} {:>14} {:>6} {:>12} {:>12}\n", "streams", "load s", "prefill tok/s", "decode tok/s",
             "busy", "prefill/HF", "decode/HF");
  for (const int streams : cases) {
    Engine engine(options, streams);
    if (streams == cases.front()) fmt::print("{}; HF = transformers bf16, 2 threads\n", engine.caps().description);
    // Best of 3, as the baseline is best of 2. Admitting a slot again starts its sequence anew.
    double prefill = 1e30, decode = 1e30, busy = 0;
    for (int i = 0; i < 3; ++i) {
      prefill = std::min(prefill, engine.prefill());
      const double cpu = cpu_seconds(), seconds = engine.decode(options.tokens);
      if (seconds < decode) busy = (cpu_seconds() - cpu) / seconds;
      decode = std::min(decode, seconds);
    }
    const auto hf = hf_bf16(streams);
    const double prefill_rate = streams * options.prompt / prefill;
    const double decode_rate = static_cast<double>(streams) * options.tokens / decode;
    fmt::print("{:>8} {:>9.3f} {:>14.0f} {:>14.0f} {:>6.2f} {:>12.1f} {:>12.1f}\n", streams, engine.load_seconds(),
               prefill_rate, decode_rate, busy, prefill_rate / hf.at("prefill_tok_s").get<double>(),
               decode_rate / hf.at("decode_tok_s").get<double>());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    fmt::print(stderr, "cpu_decode_bench: {}\n", e.what());
    return 1;
  }
}
