#include "ep/group/wait_word.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace manta::ep {

namespace {

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void wake_all(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Parks while the word is `value`; the deadline is absolute, on the steady clock.
void park(std::atomic<uint32_t>& word, uint32_t value, const WaitWord::Deadline& deadline) {
  timespec at{};
  if (deadline) {
    const auto since = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline->time_since_epoch()).count();
    at = {static_cast<time_t>(since / 1'000'000'000), static_cast<long>(since % 1'000'000'000)};
  }
  ::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, value, deadline ? &at : nullptr, nullptr, FUTEX_BITSET_MATCH_ANY);
}

}  // namespace

void WaitWord::arrive(uint32_t expected) {
  const uint32_t before = word_.fetch_add(1, std::memory_order_acq_rel);
  if ((before & ~kPoison) + 1 >= expected) wake_all(word_);
}

WaitWord::Outcome WaitWord::wait(uint32_t expected, Deadline deadline) {
  while (true) {
    const uint32_t value = word_.load(std::memory_order_acquire);
    if ((value & ~kPoison) >= expected) {  // even from one that has left since: what it brought is there
      word_.fetch_sub(expected, std::memory_order_relaxed);
      return Outcome::kArrived;
    }
    if (value & kPoison) return Outcome::kPoisoned;
    if (deadline && std::chrono::steady_clock::now() >= *deadline) return Outcome::kTimedOut;
    park(word_, value, deadline);
  }
}

void WaitWord::poison() {
  word_.fetch_or(kPoison, std::memory_order_acq_rel);
  wake_all(word_);
}

}  // namespace manta::ep
