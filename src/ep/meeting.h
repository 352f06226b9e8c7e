// How the ranks of a group find each other at a new epoch: everybody connects to everybody's listening sockets and says
// hello with rank and epoch. On a host the answer carries the descriptor of the rank's shared segment; across hosts the
// connection itself stays and carries rows.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "ep/expert_map.h"

namespace manta::ep {

// A descriptor that closes itself.
class OwnedFd {
 public:
  explicit OwnedFd(int fd = -1) : fd_(fd) {}
  ~OwnedFd();
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.release()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  int get() const { return fd_; }
  int release();
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

// What meeting a peer gave: its segment (same host), or one connection each way.
struct MetPeer {
  OwnedFd segment;
  OwnedFd outgoing;  // we send on it
  OwnedFd incoming;  // it sends on it
};

struct MeetOptions {
  EpTopology topology;
  std::vector<bool> by_segment;  // [size]: pass segments, or keep connections
  int segment_fd = -1;           // ours
  std::chrono::steady_clock::time_point deadline;
};

// The listening ends of one rank. One thread calls meet(); abort() may come from any.
class MeetingPoint {
 public:
  // tcp_host: address to listen on for other hosts; empty = this host only.
  static Result<std::unique_ptr<MeetingPoint>> open(const std::string& tcp_host);
  virtual ~MeetingPoint() = default;
  // "unix=@name tcp=10.0.0.1:4711"
  virtual const std::string& address() const = 0;
  // Collective. Fails with the rank that is missing, gone or at another epoch already.
  virtual Result<std::vector<MetPeer>> meet(const MeetOptions& options) = 0;
  // meet() for an epoch below this one returns kAborted.
  virtual void abort(Epoch epoch) = 0;
};

// The part of an address that can be connected to: "@name" or "10.0.0.1:4711"; empty when it has none.
std::string unix_part(const std::string& address);
std::string tcp_part(const std::string& address);

}  // namespace manta::ep
