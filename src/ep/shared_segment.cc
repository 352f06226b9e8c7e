#include "ep/shared_segment.h"

#include <fmt/format.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

namespace manta::ep {
namespace {

static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));
static_assert(std::endian::native == std::endian::little, "the lower half of a counter is its first word");

// Not FUTEX_PRIVATE: the word is shared between processes.
void futex_wake(std::atomic<uint64_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

// False: the deadline has passed.
bool futex_wait_until(std::atomic<uint64_t>& word, uint64_t seen, ArrivalCounter::Clock::time_point deadline) {
  const auto since_epoch = deadline.time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since_epoch);
  const timespec until{static_cast<time_t>(seconds.count()),
                       static_cast<long>(std::chrono::nanoseconds(since_epoch - seconds).count())};
  // FUTEX_WAIT_BITSET takes an absolute time of CLOCK_MONOTONIC, which is what steady_clock reads.
  const long r = ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_BITSET,
                           static_cast<uint32_t>(seen), &until, nullptr, FUTEX_BITSET_MATCH_ANY);
  return !(r != 0 && errno == ETIMEDOUT);
}

Error failed(const char* what, size_t num_bytes) {
  return error(ErrorCode::kResourceExhausted,
               fmt::format("shared memory for expert rows, {} bytes: {}: {}", num_bytes, what, std::strerror(errno)));
}

}  // namespace

// Both sides write their own word, then read the other's, in one order for all (seq_cst): either the sleeper sees the
// arrival, or the arrival sees that somebody sleeps.
void ArrivalCounter::add() {
  const uint64_t now = value_.fetch_add(1) + 1;
  const uint64_t wanted = wanted_.load();
  if (wanted != 0 && now >= wanted) futex_wake(value_);
}

ArrivalCounter::Wait ArrivalCounter::wait_for(uint64_t target, Clock::time_point deadline) {
  for (;;) {
    uint64_t seen = value_.load();
    if (seen & kClosedBit) return Wait::kClosed;
    if (seen >= target) return Wait::kReached;
    wanted_.store(target);
    seen = value_.load();
    bool in_time = true;
    if (seen < target) in_time = futex_wait_until(value_, seen, deadline);  // a closed one is above every target
    wanted_.store(0);
    if (!in_time && value_.load() < target) return Wait::kDeadline;
  }
}

void ArrivalCounter::close() {
  value_.fetch_or(kClosedBit);
  value_.fetch_add(1);  // the half that a sleeper compares must change too
  futex_wake(value_);
}

SharedSegment::~SharedSegment() {
  if (data_) ::munmap(data_, size_);
  if (fd_ >= 0) ::close(fd_);
}

SharedSegment::SharedSegment(SharedSegment&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(other.size_), fd_(std::exchange(other.fd_, -1)) {}

SharedSegment& SharedSegment::operator=(SharedSegment&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(fd_, other.fd_);
  return *this;
}

Result<SharedSegment> SharedSegment::create(size_t num_bytes) {
  SharedSegment out;
  out.fd_ = ::memfd_create("manta-ep", MFD_CLOEXEC);
  if (out.fd_ < 0) return failed("memfd_create", num_bytes);
  if (::ftruncate(out.fd_, static_cast<off_t>(num_bytes)) != 0) return failed("ftruncate", num_bytes);
  // No swap is set aside for what may never be touched: a prefill step's worst case is far from its mean.
  void* at = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, out.fd_, 0);
  if (at == MAP_FAILED) return failed("mmap", num_bytes);
  out.data_ = static_cast<std::byte*>(at);
  out.size_ = num_bytes;
  return out;
}

Result<SharedSegment> SharedSegment::adopt(int fd, size_t num_bytes) {
  struct stat s {};
  const bool fits = ::fstat(fd, &s) == 0 && static_cast<size_t>(s.st_size) >= num_bytes;
  if (!fits) {
    ::close(fd);
    return error(
        ErrorCode::kFailedPrecondition,
        fmt::format("a peer's shared memory has {} bytes, {} are expected: its settings differ", s.st_size, num_bytes));
  }
  void* at = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  ::close(fd);  // the mapping stays
  if (at == MAP_FAILED) return failed("mmap", num_bytes);
  SharedSegment out;
  out.data_ = static_cast<std::byte*>(at);
  out.size_ = num_bytes;
  return out;
}

}  // namespace manta::ep
