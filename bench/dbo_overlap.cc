// How much of the expert transport's latency d a step in two microbatches hides, with the delay transport under one
// rank: rows stay invisible for d after each start, and the wait takes no CPU. Baseline, in the same run: the same
// steps with the same delay, whole. A whole step waits 2 d a MoE layer; what a split step takes longer than one without
// delay is what it did not hide.
//
//   ./dev bench dbo_overlap [MODEL=models/tiny-v3] [TOKENS=1024] [REPEATS=15]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
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
  int num_tokens = 1024, repeats = 15;
};

template <class T>
T must(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  fmt::print(stderr, "dbo_overlap: {}\n", result.error().message);
  std::exit(1);
}

// Microseconds of prefill steps of num_tokens rows, the fastest of the repeats.
double fastest_step(const Bench& bench, std::chrono::microseconds delay, int num_microbatches) {
  exec::LocalExecutorOptions options;
  options.model = bench.model;
  options.max_num_batched_tokens = bench.num_tokens;
  options.max_num_seqs = bench.num_tokens / kPromptLength;
  options.max_model_len = 2 * kPromptLength;
  options.num_microbatches = 2;
  options.transport.delay = delay;
  const auto executor = must(exec::make_local_executor(options, nullptr));
  sched::SchedulerOptions scheduling = engine::scheduler_options(executor->info());
  scheduling.enable_prefix_caching = false;
  const auto scheduler = must(sched::Scheduler::make(scheduling));
  double best = 1e30;
  uint64_t serial = 0;
  for (int repeat = 0; repeat <= bench.repeats; ++repeat) {  // the first warms up
    for (int i = 0; i < options.max_num_seqs; ++i) {
      sched::Request request;
      request.id = {1, ++serial};
      for (int t = 0; t < kPromptLength; ++t) request.tokens.push_back(10 + (i * 37 + t * 11 + repeat) % 400);
      request.num_prompt_tokens = kPromptLength;
      request.sampling.max_tokens = 1;
      if (!scheduler->add(std::move(request)).ok()) std::exit(1);
    }
    sched::DpAgreement dp;
    dp.num_microbatches = num_microbatches;
    while (auto plan = scheduler->plan(dp)) {
      const bool whole = plan->max_num_tokens() == bench.num_tokens;
      const auto begin = Clock::now();
      const auto ticket = must(executor->submit(std::move(*plan)));
      auto result = must(executor->collect(ticket, exec::Deadline::max()));
      const double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
      if (whole && repeat > 0) best = std::min(best, us);
      must(scheduler->collect(result.id, std::move(result.slots)));
    }
  }
  return best;
}

int run(const Bench& bench) {
  using std::chrono::microseconds;
  const int num_moe_layers = 4;  // of models/tiny-v3
  const double whole = fastest_step(bench, microseconds(0), 1), split = fastest_step(bench, microseconds(0), 2);
  // A half of one layer: between the start and the finish of one microbatch's half runs one half of the other's layer.
  const double half = whole / num_moe_layers / 2;
  fmt::print("step of {} rows: whole {:.0f} us, split {:.0f} us; half a microbatch's layer about {:.0f} us\n",
             bench.num_tokens, whole, split, half / 2);
  for (const double part : {0.25, 0.5, 0.75, 1.0}) {
    const microseconds d(static_cast<int>(part * half / 2));
    const double exposed_whole = fastest_step(bench, d, 1) - whole;
    const double exposed_split = fastest_step(bench, d, 2) - split;
    fmt::print("d {:5} us: whole steps take {:6.0f} us more, split ones {:6.0f} us more: {:3.0f} % of d hidden\n",
               d.count(), exposed_whole, exposed_split, 100 * (1 - exposed_split / exposed_whole));
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
  return manta::run(bench);
}
