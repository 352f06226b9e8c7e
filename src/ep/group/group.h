// One epoch of a group as one rank has it: its own segment, what it has of its peers, and why it ended. Made by
// configure(), filled by the service thread and the connecting thread, used by the thread that runs steps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "ep/expert_map.h"
#include "ep/group/group_shape.h"
#include "ep/group/segment.h"
#include "ep/group/tcp_stream.h"

namespace manta::ep {

enum class LinkKind { kSelf, kShared, kTcp };

class Group {
 public:
  struct Peer {
    LinkKind kind = LinkKind::kSelf;
    Fd socket;                          // kShared: says when the peer is gone
    std::optional<Segment> segment;     // kShared
    std::unique_ptr<TcpStream> stream;  // kTcp
    std::atomic<bool> connected{false};
  };

  // kinds: [size], how each rank is reached.
  static Result<std::shared_ptr<Group>> make(const EpTopology& topology, const GroupShape& shape,
                                             const std::vector<LinkKind>& kinds);

  const EpTopology& topology() const { return topology_; }
  Epoch epoch() const { return topology_.epoch; }
  int rank() const { return topology_.rank; }
  int size() const { return topology_.size; }
  // What the deployment calls the rank at this place.
  int number(int rank) const { return topology_.peers[rank].rank; }
  const GroupShape& shape() const { return shape_; }
  const Segment& own() const { return *own_; }
  Peer& peer(int rank) { return peers_[rank]; }
  std::string name(int rank) const;  // "EP rank 3 (unix=@…)"

  // The peer's parts are in place.
  void connected(int rank);
  // Parks until all are, or the group failed, or kDeadlineExceeded names who is missing.
  Status wait_connected(std::chrono::steady_clock::time_point deadline);

  // The first error stands; every wait ends. Any thread.
  void fail(Error error);
  void lost(int rank, const Error& error);  // fail() naming the rank and what this one was doing
  // fail() for a fault of this rank's own: peers see their connections close, and do not wait for it.
  void fail_and_leave(Error error);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  Status status() const;
  int stop_fd() const { return stop_.get(); }  // readable once failed

  // Where this rank is, for messages.
  void at(const char* half, int layer);
  std::string position() const;

 private:
  Group(const EpTopology& topology, const GroupShape& shape);

  const EpTopology topology_;
  const GroupShape shape_;
  std::optional<Segment> own_;
  std::vector<Peer> peers_;
  Fd stop_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Error> fault_;
  std::atomic<bool> failed_{false};
  std::atomic<const char*> half_{nullptr};
  std::atomic<int> layer_{-1};
};

}  // namespace manta::ep
