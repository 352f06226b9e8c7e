// A count that peers raise and one rank waits for, in memory they share. The waiter parks in the kernel (futex) and is
// woken by the last arrival only; nobody spins. Zeroed memory is a valid word.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>

namespace manta::ep {

class WaitWord {
 public:
  enum class Outcome { kArrived, kPoisoned, kTimedOut };
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;

  // Any thread of any process. What was written before is visible to who waited for it.
  void arrive(uint32_t expected);
  // The word's one waiter: returns once `expected` arrivals are there and takes them off the count. The caller's
  // protocol must keep arrivals of the next round out until then.
  Outcome wait(uint32_t expected, Deadline deadline);
  // Ends every wait, now and later. Any thread.
  void poison();

 private:
  static constexpr uint32_t kPoison = 0x80000000u;
  std::atomic<uint32_t> word_{0};
};

}  // namespace manta::ep
