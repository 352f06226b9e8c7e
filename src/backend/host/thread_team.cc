#include "backend/host/thread_team.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

namespace manta::backend::host {
namespace {

constexpr uint32_t kOpen = 1u << 31;

// std::atomic::wait polls and yields before it parks; these park at once.
void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return std::max(1u, std::thread::hardware_concurrency());
  return std::max(1, CPU_COUNT(&set));
}

ThreadTeam::ThreadTeam(int num_threads, int spin_us) : spin_us_(spin_us) {
  if (num_threads <= 0) num_threads = available_cores();
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { worker_main(thread); });
  }
}

ThreadTeam::~ThreadTeam() {
  stop_.store(true);
  signal_.fetch_add(1);
  futex_wake(signal_, num_threads());
  for (auto& worker : workers_) worker.join();
}

void ThreadTeam::run(const Job& job) {
  job_ = job;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  signal_.fetch_add(1);
  const int64_t num_pieces = (job.n + job.grain - 1) / job.grain;
  futex_wake(signal_, static_cast<int>(std::min<int64_t>(num_pieces - 1, num_threads() - 1)));
  work(0);
  // Shut the gate, then wait for those inside; who has not come in by now finds it shut and parks again.
  uint32_t inside = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  while (inside != 0) {
    futex_wait(gate_, inside);
    inside = gate_.load(std::memory_order_acquire);
  }
}

void ThreadTeam::work(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(job_.grain, std::memory_order_relaxed);
    if (begin >= job_.n) return;
    job_.body(job_.context, begin, std::min(begin + job_.grain, job_.n), thread);
  }
}

bool ThreadTeam::try_join() {
  uint32_t gate = gate_.load(std::memory_order_relaxed);
  while (gate & kOpen) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed)) return true;
  }
  return false;
}

void ThreadTeam::leave() {
  if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) futex_wake(gate_, 1);
}

void ThreadTeam::wait_for_signal(uint32_t seen) {
  if (spin_us_ > 0) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us_);
    while (signal_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < end) {
      __builtin_ia32_pause();
    }
  }
  while (signal_.load(std::memory_order_acquire) == seen) futex_wait(signal_, seen);
}

void ThreadTeam::worker_main(int thread) {
  while (true) {
    const uint32_t seen = signal_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    if (try_join()) {
      work(thread);
      leave();
    }
    wait_for_signal(seen);
  }
}

}  // namespace manta::backend::host
