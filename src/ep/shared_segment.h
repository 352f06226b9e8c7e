// Memory that the ranks of one host share, and the counters they wait on. A segment is an unnamed file (memfd) that is
// passed over a socket: whatever way a process ends, nothing is left behind.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "base/result.h"

namespace manta::ep {

// Counts arrivals. Any process of the host may add; the owner waits until a number is reached, parked in the kernel.
// Only the arrival that reaches what the owner waits for wakes it.
class ArrivalCounter {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Wait { kReached, kClosed, kDeadline };

  void add();
  Wait wait_for(uint64_t target, Clock::time_point deadline);
  void close();  // ends every wait, for good; any thread of the owner

 private:
  static constexpr uint64_t kClosedBit = uint64_t{1} << 63;
  std::atomic<uint64_t> value_{0};   // the kernel compares its lower half
  std::atomic<uint64_t> wanted_{0};  // 0: nobody sleeps
};

class SharedSegment {
 public:
  SharedSegment() = default;
  ~SharedSegment();
  SharedSegment(SharedSegment&& other) noexcept;
  SharedSegment& operator=(SharedSegment&& other) noexcept;

  // Zeroed memory of this process; pages cost nothing until they are written.
  static Result<SharedSegment> create(size_t num_bytes);
  // A peer's, from its descriptor, which is closed. Fails when it is smaller than num_bytes.
  static Result<SharedSegment> adopt(int fd, size_t num_bytes);

  std::byte* data() const { return data_; }
  int fd() const { return fd_; }  // of a created one, to be passed on

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;
};

}  // namespace manta::ep
