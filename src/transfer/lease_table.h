// The owner's side of a hand-off, without sockets, threads or clocks: which blocks peers may read, and until when.
//
// A lease begins when a prefill that somebody else continues is announced, grows with each finished chunk, and is final
// once the prefill ended; from then on the blocks are kept for it. A reader opens it, reads while it grows, and says
// done; only the answer to that makes what it read valid. So whatever way a lease ends before (cancelled, preempted,
// expired because nobody came or the reader fell silent), a late reader gets a refusal, and never rows that other
// requests have written since. Times are counted by the caller.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace manta::transfer {

using Time = std::chrono::steady_clock::time_point;

// One request's wish of one reader: unique while the connection lasts.
struct ReaderId {
  uint64_t connection = 0;
  uint64_t pull = 0;
  auto operator<=>(const ReaderId&) const = default;
};

struct LeaseOptions {
  std::chrono::milliseconds unclaimed{30000};   // a final lease nobody opened
  std::chrono::milliseconds lease{30000};       // an opened one, since its reader was last heard
  std::chrono::milliseconds rendezvous{10000};  // a reader that came first waits so long for the prefill to be known
};

// What a reader is told.
struct LeaseMessage {
  enum class Kind : uint8_t { kOffer, kConfirmed, kRefused };
  Kind kind = Kind::kOffer;
  ReaderId reader;
  uint64_t generation = 0;      // grows when the blocks are others than before; what was read of them is void
  std::vector<BlockId> blocks;  // kOffer: all of them so far, in sequence order
  int num_tokens = 0;           // kOffer: leading tokens whose rows are written
  bool final = false;           // kOffer: it grows no more
  std::string reason;           // kRefused
};

class LeaseTable {
 public:
  explicit LeaseTable(LeaseOptions options) : options_(options) {}

  // ---- the prefill ----
  // Announces, or grows, or (final) completes the lease of `request`. The same call with the same values is harmless.
  void offer(RequestId request, const std::string& key, std::span<const BlockId> blocks, int num_tokens, bool final,
             Time now);
  void restart(RequestId request);                              // preempted: its blocks are somebody else's now
  void withdraw(RequestId request, const std::string& reason);  // aborted: the same, and nothing will follow

  // ---- readers ----
  // wait: the prefill may still be on its way; else an unknown key is one whose lease has ended.
  void open(ReaderId reader, const std::string& key, int num_readers, bool wait, Time now);
  void done(ReaderId reader, uint64_t generation, uint64_t num_bytes);  // it has read everything it wants
  void cancel(ReaderId reader, Time now);                               // it wants nothing any more
  void heard(uint64_t connection, Time now);                            // it lives
  void connection_gone(uint64_t connection, Time now);

  void advance(Time now);  // expires what is due

  // ---- what follows from it ----
  std::vector<LeaseMessage> take_messages() { return std::exchange(messages_, {}); }
  std::vector<RequestId> take_released() { return std::exchange(released_, {}); }  // final, and over: blocks may go
  int num_leases() const { return static_cast<int>(leases_.size()); }
  bool idle() const { return leases_.empty() && waiting_.empty() && gone_.empty(); }
  uint64_t num_expired() const { return num_expired_; }
  uint64_t num_refused() const { return num_refused_; }
  uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  struct Lease {
    std::string key;
    uint64_t generation = 1;
    std::vector<BlockId> blocks;
    int num_tokens = 0;
    bool final = false;
    std::set<ReaderId> readers;  // have it open
    int num_expected = 1;
    int num_ended = 0;  // readers that are done, gave up or are gone
    Time deadline;
  };
  struct Waiting {
    std::string key;
    int num_readers = 1;
    Time deadline;
  };
  struct Gone {
    int num_expected = 1;
    int num_ended = 0;
    Time deadline;
  };
  using Leases = std::unordered_map<RequestId, Lease>;

  void attach(Lease& lease, ReaderId reader, int num_readers, Time now);
  void send_offer(const Lease& lease, ReaderId reader);
  void refuse(ReaderId reader, std::string reason);
  void give_up_waiting(std::map<ReaderId, Waiting>::iterator it, Time now);
  void end_reader(ReaderId reader);
  void end(Leases::iterator it, const std::string& reason);

  LeaseOptions options_;
  Leases leases_;
  std::unordered_map<std::string, RequestId> by_key_;
  std::map<ReaderId, RequestId> by_reader_;
  std::map<ReaderId, Waiting> waiting_;
  std::unordered_map<std::string, Gone> gone_;  // by key: readers that left before the prefill was known
  std::vector<LeaseMessage> messages_;
  std::vector<RequestId> released_;
  uint64_t num_expired_ = 0;
  uint64_t num_refused_ = 0;
  uint64_t bytes_sent_ = 0;
};

}  // namespace manta::transfer
