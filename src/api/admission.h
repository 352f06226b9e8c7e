// The bound on requests that wait or run, over all event loops of the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

namespace manta::api {

class Admission {
 public:
  explicit Admission(int64_t max_num_queued_reqs) : limit_(max_num_queued_reqs) {}

  // Holds places until destroyed.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept : from_(std::exchange(other.from_, nullptr)), num_(other.num_) {}
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(from_, other.from_);
      std::swap(num_, other.num_);
      return *this;
    }
    ~Ticket() {
      if (from_) from_->num_admitted_.fetch_sub(num_, std::memory_order_relaxed);
    }
    explicit operator bool() const { return from_ != nullptr; }

   private:
    friend class Admission;
    Ticket(Admission* from, int64_t num) : from_(from), num_(num) {}
    Admission* from_ = nullptr;
    int64_t num_ = 0;
  };

  // num places at once (n sequences count n), or none: a false ticket.
  Ticket try_admit(int64_t num) {
    if (num_admitted_.fetch_add(num, std::memory_order_relaxed) + num <= limit_) return {this, num};
    num_admitted_.fetch_sub(num, std::memory_order_relaxed);
    return {};
  }
  int64_t num_admitted() const { return num_admitted_.load(std::memory_order_relaxed); }
  int64_t limit() const { return limit_; }

 private:
  const int64_t limit_;
  std::atomic<int64_t> num_admitted_{0};
};

}  // namespace manta::api
