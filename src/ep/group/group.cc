#include "ep/group/group.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace manta::ep {

Group::Group(const EpTopology& topology, const GroupShape& shape)
    : topology_(topology), shape_(shape), peers_(static_cast<size_t>(topology.size)) {}

Result<std::shared_ptr<Group>> Group::make(const EpTopology& topology, const GroupShape& shape,
                                           const std::vector<LinkKind>& kinds) {
  std::shared_ptr<Group> group(new Group(topology, shape));
  for (int r = 0; r < topology.size; ++r) group->peers_[r].kind = kinds[r];
  MANTA_ASSIGN(group->own_, Segment::create(shape));
  group->stop_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!group->stop_) {
    return error(ErrorCode::kResourceExhausted, fmt::format("expert transport: eventfd: {}", std::strerror(errno)));
  }
  group->peers_[topology.rank].connected = true;
  return group;
}

std::string Group::name(int rank) const {
  const std::string& address = topology_.peers[rank].address;
  return fmt::format("EP rank {} of {} ({})", number(rank), size(), address.substr(0, address.find(";key=")));
}

void Group::connected(int rank) {
  const std::lock_guard lock(mutex_);
  peers_[rank].connected = true;
  changed_.notify_all();
}

Status Group::wait_connected(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  std::vector<int> missing;
  const auto complete = [&] {
    missing.clear();
    for (int r = 0; r < size(); ++r) {
      if (!peers_[r].connected) missing.push_back(number(r));
    }
    return missing.empty() || fault_;
  };
  const bool done = changed_.wait_until(lock, deadline, complete);
  if (fault_) return *fault_;
  if (done) return {};
  return error(ErrorCode::kDeadlineExceeded,
               fmt::format("epoch {}: EP rank {} of {} did not come", epoch().value, fmt::join(missing, ", "), size()));
}

void Group::fail(Error error) {
  {
    const std::lock_guard lock(mutex_);
    if (fault_) return;
    fault_ = std::move(error);
    failed_.store(true, std::memory_order_release);
    changed_.notify_all();
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(stop_.get(), &one, sizeof(one));
  for (int i = 0; i < shape_.num_microbatches; ++i) {
    own_->mailbox(i).dispatched.poison();
    own_->mailbox(i).combined.poison();
  }
}

void Group::lost(int rank, const Error& why) {
  fail(error(why.code, fmt::format("{} {}; epoch {}, {}", name(rank), why.message, epoch().value, position())));
}

void Group::fail_and_leave(Error error) {
  fail(std::move(error));
  for (Peer& peer : peers_) {
    if (!peer.connected) continue;
    if (peer.stream) peer.stream->close();
    if (peer.socket) ::shutdown(peer.socket.get(), SHUT_RDWR);
  }
}

Status Group::status() const {
  const std::lock_guard lock(mutex_);
  return fault_ ? Status(*fault_) : Status();
}

void Group::at(const char* half, int layer) {
  half_.store(half, std::memory_order_relaxed);
  layer_.store(layer, std::memory_order_relaxed);
}

std::string Group::position() const {
  const char* half = half_.load(std::memory_order_relaxed);
  if (!half) return fmt::format("rank {} before its first step", rank());
  return fmt::format("rank {} in {} of MoE layer {}", rank(), half, layer_.load(std::memory_order_relaxed));
}

}  // namespace manta::ep
