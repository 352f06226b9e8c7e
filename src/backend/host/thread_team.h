// The threads that a CPU backend computes with. The caller is one of them; the others park on a futex between calls, so
// an idle engine uses no CPU and several engines can share two cores. Work goes out in pieces that threads take as they
// come free, so a thread that was slow to wake costs nothing: the caller does its pieces and does not wait for it.
//
// Which thread does a piece is not determined; what a piece computes must not depend on it, nor on how [0, n) is cut.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace manta::backend::host {

// Cores this process may run on.
int available_cores();

class ThreadTeam {
 public:
  // num_threads: in all, the caller included; 0 = available_cores(). spin_us: how long a thread without work polls
  // before it parks; 0, the default, polls never.
  explicit ThreadTeam(int num_threads, int spin_us = 0);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(begin, end, thread) over pieces of at most `grain` indices that together are [0, n); thread is in
  // [0, num_threads()). Returns when all are done. One caller at a time; body must not throw or call this again.
  template <typename Body>
  void parallel_for(int64_t n, int64_t grain, Body&& body) {
    if (n <= 0) return;
    if (n <= grain || workers_.empty()) {
      body(int64_t{0}, n, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    run({[](void* context, int64_t begin, int64_t end, int thread) {
           (*static_cast<Plain*>(context))(begin, end, thread);
         },
         const_cast<std::remove_const_t<Plain>*>(&body), n, grain});
  }

 private:
  struct Job {
    void (*body)(void* context, int64_t begin, int64_t end, int thread) = nullptr;
    void* context = nullptr;
    int64_t n = 0;
    int64_t grain = 1;
  };

  void run(const Job& job);
  void work(int thread);
  void worker_main(int thread);
  bool try_join();
  void leave();
  void wait_for_signal(uint32_t seen);

  const int spin_us_;
  Job job_;                          // written while the gate is shut
  std::atomic<int64_t> next_{0};     // first index nobody has taken
  std::atomic<uint32_t> signal_{0};  // counts jobs (and the stop); what workers park on
  std::atomic<uint32_t> gate_{0};    // top bit: a job may be joined; the rest: workers inside it
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace manta::backend::host
