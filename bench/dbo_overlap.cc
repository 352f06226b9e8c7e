// How much of the expert transport's latency d a step in two microbatches hides, with the delay transport under one
// rank: rows stay invisible for d after each start, and the wait takes no CPU. Baseline, in the same run: the same
// steps with the same delay, whole. A whole step waits 2 d a MoE layer; what a split step takes longer than a split one
// without delay is what it did not hide. d is given in parts of what a microbatch computes in one MoE layer: the
// difference between models of LAYERS and of half as many. The last combine of a step finds nothing to run under, which
// counts the less, the more layers there are. Weights are dummies. The fastest of the repeats counts.
//
//   ./dev bench dbo_overlap [MODEL=models/tiny-v3] [TOKENS=512] [REPEATS=30] [LAYERS=17]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/scheduler_options.h"
#include "exec/local_executor.h"
#include "sched/scheduler.h"

namespace manta {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kPromptLength = 64;

struct Bench {
  std::string model = "models/tiny-v3";
  int num_tokens = 512, repeats = 30, layers = 17;
};

template <class T>
T must(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  fmt::print(stderr, "dbo_overlap: {}\n", result.error().message);
  std::exit(1);
}

// One rank whose rows take `delay` each way; its fastest steps so far.
class Rank {
 public:
  Rank(const Bench& bench, int layers, std::chrono::microseconds delay) : delay(delay), num_tokens_(bench.num_tokens) {
    exec::LocalExecutorOptions options;
    options.model = bench.model;
    options.hf_overrides = fmt::format(R"({{"num_hidden_layers":{}}})", layers);
    options.load_format = "dummy";
    options.backend.num_threads = 1;  // a wait leaves a core idle, never a helper thread busy
    options.max_num_batched_tokens = bench.num_tokens;
    options.max_num_seqs = bench.num_tokens / kPromptLength;
    options.max_model_len = 2 * kPromptLength;
    options.num_microbatches = 2;
    options.transport.delay = delay;
    executor_ = must(exec::make_local_executor(options, nullptr));
    sched::SchedulerOptions scheduling = engine::scheduler_options(executor_->info());
    scheduling.enable_prefix_caching = false;
    scheduler_ = must(sched::Scheduler::make(scheduling));
  }

  // One prefill step of num_tokens rows.
  void step(int num_microbatches) {
    for (int i = 0; i < num_tokens_ / kPromptLength; ++i) {
      sched::Request request;
      request.id = {1, ++serial_};
      for (int t = 0; t < kPromptLength; ++t) request.tokens.push_back(10 + (i * 37 + t * 11) % 400);
      request.num_prompt_tokens = kPromptLength;
      request.sampling.max_tokens = 1;
      if (!scheduler_->add(std::move(request)).ok()) std::exit(1);
    }
    sched::DpAgreement dp;
    dp.num_microbatches = num_microbatches;
    while (auto plan = scheduler_->plan(dp)) {
      const bool whole = plan->max_num_tokens() == num_tokens_;
      const auto begin = Clock::now();
      const auto ticket = must(executor_->submit(std::move(*plan)));
      auto result = must(executor_->collect(ticket, exec::Deadline::max()));
      const double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
      double& best = num_microbatches == 1 ? whole_us : split_us;
      if (whole) best = std::min(best, us);
      must(scheduler_->collect(result.id, std::move(result.slots)));
    }
  }

  const std::chrono::microseconds delay;
  double whole_us = 1e30, split_us = 1e30;

 private:
  const int num_tokens_;
  std::unique_ptr<exec::Executor> executor_;
  std::unique_ptr<sched::Scheduler> scheduler_;
  uint64_t serial_ = 0;
};

// In turns, so that what else the machine does meets all of them.
void run_all(std::vector<Rank>& ranks, int repeats) {
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (Rank& rank : ranks) {
      rank.step(1);
      rank.step(2);
    }
  }
}

int run(const Bench& bench) {
  constexpr std::chrono::microseconds kNoDelay{0};
  std::vector<Rank> deep_and_shallow;
  const int half = bench.layers / 2;
  deep_and_shallow.emplace_back(bench, bench.layers, kNoDelay);
  deep_and_shallow.emplace_back(bench, bench.layers - half, kNoDelay);
  run_all(deep_and_shallow, bench.repeats);
  const double microbatch = (deep_and_shallow[0].whole_us - deep_and_shallow[1].whole_us) / half / 2;
  std::vector<Rank> ranks;
  for (const double part : {0.0, 0.125, 0.25, 0.375, 0.5}) {
    ranks.emplace_back(bench, bench.layers, std::chrono::microseconds(static_cast<int>(part * microbatch)));
  }
  run_all(ranks, bench.repeats);
  const Rank& none = ranks[0];
  fmt::print(
      "{} layers, steps of {} rows without delay: whole {:.0f} us, split {:.0f} us; a microbatch's layer {:.0f} us\n",
      bench.layers, bench.num_tokens, none.whole_us, none.split_us, microbatch);
  for (const Rank& rank : std::span(ranks).subspan(1)) {
    const double whole = rank.whole_us - none.whole_us, split = rank.split_us - none.split_us;
    fmt::print("d {:5} us: whole steps take {:6.0f} us more, split ones {:6.0f} us more: {:3.0f} % hidden\n",
               rank.delay.count(), whole, split, 100 * (1 - split / whole));
  }
  return 0;
}

}  // namespace
}  // namespace manta

int main(int argc, char** argv) {
  manta::Bench bench;
  if (argc > 1) bench.model = argv[1];
  if (argc > 2) bench.num_tokens = std::atoi(argv[2]);
  if (argc > 3) bench.repeats = std::atoi(argv[3]);
  if (argc > 4) bench.layers = std::max(4, std::atoi(argv[4]));
  return manta::run(bench);
}
