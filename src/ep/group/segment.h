// The memory that a rank shows to the ranks on its host: what it routed, its rows, and where its experts put their
// outputs. An anonymous memfd whose descriptor goes to peers over a unix socket: it has no name, so nothing is left
// behind however a process ends. Pages exist once they are touched.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/result.h"
#include "ep/group/group_shape.h"
#include "ep/group/wait_word.h"

namespace manta::ep {

// A file descriptor that is closed with its owner.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd();
  int get() const { return fd_; }
  int release();
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// A mapping that ends with its owner.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();
  // Of a shared file, or of private memory with fd -1. kResourceExhausted.
  static Result<Mapping> make(size_t num_bytes, int fd);
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
  size_t num_bytes_ = 0;
};

// One microbatch's numbers of the round it is in. The owner writes them before its peers' words are raised; the words
// are raised by the peers.
struct Mailbox {
  int32_t layer = -1;
  int32_t num_tokens = 0;
  uint32_t more = 0;
  alignas(64) std::atomic<uint32_t> rounds_sent{0};  // dispatches the owner has started
  std::atomic<uint32_t> rounds_returned{0};          // combines the owner has started
  alignas(64) WaitWord dispatched;                   // peers whose rows are there
  alignas(64) WaitWord combined;                     // peers whose outputs are there
};

// A rank's segment. Everything is per microbatch.
class Segment {
 public:
  static Result<Segment> create(const GroupShape& shape);
  // Of a peer: checks that it cannot shrink under us and is large enough.
  static Result<Segment> open(const GroupShape& shape, Fd fd);
  static size_t num_bytes(const GroupShape& shape);

  int fd() const { return fd_.get(); }
  Mailbox& mailbox(int microbatch) const { return *reinterpret_cast<Mailbox*>(part(microbatch, 0)); }
  int32_t* topk_id(int microbatch) const { return reinterpret_cast<int32_t*>(part(microbatch, topk_id_)); }
  // [T, top_k]: row of the batch of the rank that has the expert; written by that rank.
  int32_t* row_of(int microbatch) const { return reinterpret_cast<int32_t*>(part(microbatch, row_of_)); }
  char* rows(int microbatch) const { return part(microbatch, rows_); }      // [T, D]
  char* output(int microbatch) const { return part(microbatch, output_); }  // [capacity, D] of the owner's experts

 private:
  Segment(const GroupShape& shape, Fd fd, Mapping mapping);
  char* part(int microbatch, size_t offset) const { return mapping_.data() + microbatch * stride_ + offset; }

  Fd fd_;
  Mapping mapping_;
  size_t topk_id_ = 0, row_of_ = 0, rows_ = 0, output_ = 0, stride_ = 0;
};

}  // namespace manta::ep
