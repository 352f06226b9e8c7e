// What does the scheduler cost per step, and does the length of the queue matter?
//   manta_sched_step [STEPS]
// 512 requests generate, W more wait for a seat; a step is plan() and collect(), without an executor between. Each
// step a request ends and the next takes its seat. Baseline: the same with 10 waiting.
// Prints a table and one JSON line per case: µs per step as median, p90 and max, and the ratio of the medians. "max
// cpu" is the dearest step by the thread's own time: where max is far above it, the thread was not running.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "sched/scheduler.h"

namespace {

using manta::TokenId;
using namespace manta::sched;

constexpr int kRunning = 512;
constexpr int kPromptTokens = 200;
constexpr int kMaxTokens = 512;

struct Case {
  int num_waiting;
  int num_speculative_tokens;
  bool async;
};

struct Times {
  double median, p90, max, max_cpu;
};

Request make_request(uint64_t serial) {
  Request request;
  request.id = {1, serial};
  for (int i = 0; i < kPromptTokens; ++i)
    request.tokens.push_back(static_cast<TokenId>((serial * 131 + i * 7) % 100000));
  request.num_prompt_tokens = kPromptTokens;
  request.sampling.max_tokens = kMaxTokens;
  request.sampling.eos_token_ids = {100001};
  return request;
}

// What an executor would answer: one token each, all drafts rejected; the first of the step ends.
std::vector<SlotResult> answer(const StepPlan& plan) {
  std::vector<SlotResult> out;
  for (const auto& slice : plan.prefills) {
    if (slice.samples) out.push_back({slice.slot, 1, {5}, {}, {}, 0});
  }
  for (const auto& slice : plan.decodes) {
    out.push_back({slice.slot, 1, {&slice == &plan.decodes.front() ? 100001 : 5}, {}, {}, slice.max_num_tokens - 1});
  }
  return out;
}

std::unique_ptr<Scheduler> make_scheduler(const Case& c) {
  SchedulerOptions options;
  options.max_num_seqs = kRunning;
  options.max_num_batched_tokens = 8192;
  options.max_model_len = 4096;
  options.block_size = 64;
  options.num_blocks = kRunning * 16;
  options.num_speculative_tokens = c.num_speculative_tokens;
  return std::move(Scheduler::make(options)).value();
}

double cpu_us() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
}

Times measure(const Case& c, int num_steps) {
  auto scheduler = make_scheduler(c);
  uint64_t serial = 0;
  std::vector<double> us;
  double max_cpu = 0;
  std::vector<StepPlan> submitted;
  for (int step = 0; static_cast<int>(us.size()) < num_steps; ++step) {
    while (scheduler->stats().num_waiting + scheduler->stats().num_running < kRunning + c.num_waiting) {
      if (!scheduler->add(make_request(++serial)).ok()) std::abort();
    }
    using Clock = std::chrono::steady_clock;
    const double cpu_begin = cpu_us();
    const auto begin = Clock::now();
    auto plan = scheduler->plan({});
    const auto planned = Clock::now();
    double cpu = cpu_us() - cpu_begin;
    submitted.push_back(std::move(*plan));
    if (c.async && submitted.size() < 2) continue;
    auto results = answer(submitted.front());
    const double cpu_answered = cpu_us();
    const auto answered = Clock::now();
    auto events = scheduler->collect(submitted.front().id, std::move(results));
    const auto end = Clock::now();
    cpu += cpu_us() - cpu_answered;
    if (!events.ok()) std::abort();
    submitted.erase(submitted.begin());
    const bool warm = step > 100 && scheduler->stats().num_running >= kRunning - 2;
    if (!warm) continue;
    us.push_back(std::chrono::duration<double, std::micro>((planned - begin) + (end - answered)).count());
    max_cpu = std::max(max_cpu, cpu);
  }
  std::sort(us.begin(), us.end());
  return {us[us.size() / 2], us[us.size() * 9 / 10], us.back(), max_cpu};
}

}  // namespace

int main(int argc, char** argv) {
  const int num_steps = argc > 1 ? std::max(1, std::atoi(argv[1])) : 2000;
  fmt::print("{} running, one ends and one starts per step; us per plan() + collect(), {} steps\n", kRunning,
             num_steps);
  fmt::print("{:>8} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8} {:>22}\n", "waiting", "drafts", "async", "median", "p90", "max",
             "max cpu", "ratio to 10 waiting");
  for (int drafts : {0, 1}) {
    for (bool async : {false, true}) {
      double baseline = 0;
      for (int waiting : {10, 1000, 10000}) {
        const Times t = measure({waiting, drafts, async}, num_steps);
        if (waiting == 10) baseline = t.median;
        fmt::print("{:>8} {:>6} {:>6} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>22.2f}\n", waiting, drafts, async,
                   t.median, t.p90, t.max, t.max_cpu, t.median / baseline);
        fmt::print(
            "{{\"bench\":\"sched_step\",\"device\":\"cpu\",\"running\":{},\"waiting\":{},\"drafts\":{},\"async\":{},"
            "\"median_us\":{:.1f},\"p90_us\":{:.1f},\"max_us\":{:.1f},\"max_cpu_us\":{:.1f},\"baseline\":\"10 "
            "waiting\",\"ratio\":{:.2f}}}\n",
            kRunning, waiting, drafts, async, t.median, t.p90, t.max, t.max_cpu, t.median / baseline);
      }
    }
  }
  return 0;
}
