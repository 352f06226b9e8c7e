#include "ep/tcp_peers.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace manta::ep {
namespace {

constexpr uint32_t kMagic = 0x4d455031;  // "MEP1"

}  // namespace

TcpPeers::TcpPeers(const TcpShape& shape, std::vector<MetPeer>& met)
    : shape_(shape), bell_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  for (int rank = 0; rank < static_cast<int>(met.size()); ++rank) {
    if (!met[rank].outgoing) continue;
    auto p = std::make_unique<Peer>();
    p->rank = rank;
    p->out = std::move(met[rank].outgoing);
    p->in = std::move(met[rank].incoming);
    p->inboxes.resize(shape.num_microbatches);
    ranks_.push_back(rank);
    peers_.push_back(std::move(p));
  }
  if (!peers_.empty()) reader_ = std::thread([this] { read_forever(); });
}

TcpPeers::~TcpPeers() {
  close();
  if (reader_.joinable()) reader_.join();
}

void TcpPeers::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  for (const auto& p : peers_) {  // a send that waits for room in the socket ends too
    ::shutdown(p->out.get(), SHUT_RDWR);
    ::shutdown(p->in.get(), SHUT_RDWR);
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t rung = ::write(bell_.get(), &one, sizeof(one));
  arrived_.notify_all();
}

TcpPeers::Peer& TcpPeers::peer(int rank) {
  return *peers_[std::find(ranks_.begin(), ranks_.end(), rank) - ranks_.begin()];
}

Status TcpPeers::send(Peer& p, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(p.out.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes = bytes.subspan(n);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      pollfd writable{p.out.get(), POLLOUT, 0};
      ::poll(&writable, 1, -1);  // ends with close() or with the peer
    } else if (errno != EINTR) {
      return error(ErrorCode::kUnavailable, fmt::format("rank {}: sending: {}", p.rank, std::strerror(errno)));
    }
  }
  return {};
}

Result<int> TcpPeers::send_rows(int rank, int microbatch, int num_tokens, bool more, const int32_t* ids,
                                const std::byte* rows) {
  const int first_expert = rank * shape_.num_local_experts;
  const size_t id_bytes = static_cast<size_t>(num_tokens) * shape_.top_k * sizeof(int32_t);
  frame_.resize(sizeof(Head) + id_bytes + static_cast<size_t>(num_tokens) * shape_.row_bytes);
  if (num_tokens > 0) std::memcpy(frame_.data() + sizeof(Head), ids, id_bytes);
  std::byte* to = frame_.data() + sizeof(Head) + id_bytes;
  Head head{kMagic, Kind::kRows, static_cast<uint32_t>(microbatch), static_cast<uint32_t>(num_tokens), 0, more};
  for (int t = 0; t < num_tokens; ++t) {
    const int32_t* of_token = ids + static_cast<size_t>(t) * shape_.top_k;
    const bool goes = std::any_of(of_token, of_token + shape_.top_k, [&](int32_t id) {
      return id >= first_expert && id < first_expert + shape_.num_local_experts;
    });
    if (!goes) continue;
    std::memcpy(to, rows + t * shape_.row_bytes, shape_.row_bytes);
    to += shape_.row_bytes;
    ++head.num_rows;
  }
  std::memcpy(frame_.data(), &head, sizeof(head));
  MANTA_TRY(send(peer(rank), std::span(frame_.data(), to)));
  return static_cast<int>(head.num_rows);
}

Status TcpPeers::send_outputs(int rank, int microbatch, std::span<const std::byte* const> rows) {
  frame_.resize(sizeof(Head) + rows.size() * shape_.row_bytes);
  const Head head{kMagic, Kind::kOutputs, static_cast<uint32_t>(microbatch), 0, static_cast<uint32_t>(rows.size()), 0};
  std::memcpy(frame_.data(), &head, sizeof(head));
  std::byte* to = frame_.data() + sizeof(head);
  for (const std::byte* row : rows) {
    std::memcpy(to, row, shape_.row_bytes);
    to += shape_.row_bytes;
  }
  return send(peer(rank), frame_);
}

Status TcpPeers::wait(Peer& p, const bool& ready, Clock::time_point deadline, const char* what) {
  std::unique_lock lock(mutex_);
  const bool in_time = arrived_.wait_until(lock, deadline, [&] { return ready || closed_ || !p.gone.empty(); });
  if (ready) return {};
  if (closed_) return error(ErrorCode::kAborted, "the group is over");
  if (in_time) return error(ErrorCode::kUnavailable, fmt::format("rank {}: {}", p.rank, p.gone));
  return error(ErrorCode::kDeadlineExceeded, fmt::format("rank {} sent no {}", p.rank, what));
}

Result<const TcpPeers::Rows*> TcpPeers::wait_rows(int rank, int microbatch, Clock::time_point deadline) {
  Peer& p = peer(rank);
  Inbox& inbox = p.inboxes[microbatch];
  MANTA_TRY(wait(p, inbox.rows_ready, deadline, "rows"));
  const std::lock_guard lock(mutex_);
  std::swap(inbox.taken_rows, inbox.rows);
  inbox.rows_ready = false;
  return static_cast<const Rows*>(&inbox.taken_rows);
}

Result<const std::byte*> TcpPeers::wait_outputs(int rank, int microbatch, int num_rows, Clock::time_point deadline) {
  Peer& p = peer(rank);
  Inbox& inbox = p.inboxes[microbatch];
  MANTA_TRY(wait(p, inbox.outputs_ready, deadline, "expert outputs"));
  const std::lock_guard lock(mutex_);
  std::swap(inbox.taken_outputs, inbox.outputs);
  inbox.outputs_ready = false;
  if (inbox.taken_outputs.size() != num_rows * shape_.row_bytes) {
    return error(ErrorCode::kDataLoss, fmt::format("rank {} answered {} bytes of outputs, {} rows of {} were asked for",
                                                   rank, inbox.taken_outputs.size(), num_rows, shape_.row_bytes));
  }
  return static_cast<const std::byte*>(inbox.taken_outputs.data());
}

void TcpPeers::read_forever() {
  std::vector<pollfd> fds;
  for (;;) {
    fds.assign(1, {bell_.get(), POLLIN, 0});
    std::vector<Peer*> open;
    for (const auto& p : peers_) {
      if (!p->gone.empty()) continue;  // written by this thread only
      fds.push_back({p->in.get(), POLLIN, 0});
      open.push_back(p.get());
    }
    ::poll(fds.data(), fds.size(), -1);
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
    }
    for (size_t i = 0; i < open.size(); ++i) {
      if (fds[i + 1].revents == 0 || read_some(*open[i])) continue;
      const std::lock_guard lock(mutex_);
      if (open[i]->gone.empty()) open[i]->gone = "the connection was closed";
      arrived_.notify_all();
    }
  }
}

// False: nothing more will come.
bool TcpPeers::read_some(Peer& p) {
  for (;;) {
    std::byte* to = p.in_payload ? p.payload.data() : reinterpret_cast<std::byte*>(&p.head);
    const size_t whole = p.in_payload ? p.payload.size() : sizeof(Head);
    if (p.num_read < whole) {
      const ssize_t n = ::recv(p.in.get(), to + p.num_read, whole - p.num_read, MSG_DONTWAIT);
      if (n == 0) return false;
      if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
      p.num_read += n;
      if (p.num_read < whole) continue;
    }
    p.num_read = 0;
    if (!p.in_payload) {
      if (!is_sane(p.head)) {
        const std::lock_guard lock(mutex_);
        p.gone = "it sent what is no frame of expert rows";
        return false;
      }
      p.payload.resize(payload_bytes(p.head));
      p.in_payload = true;
      continue;
    }
    p.in_payload = false;
    if (!deliver(p)) return false;
  }
}

bool TcpPeers::is_sane(const Head& h) const {
  if (h.magic != kMagic || h.microbatch >= static_cast<uint32_t>(shape_.num_microbatches)) return false;
  const auto max_tokens = static_cast<uint32_t>(shape_.max_tokens);
  if (h.kind == Kind::kOutputs) {
    return h.num_tokens == 0 && h.num_rows <= max_tokens * static_cast<uint64_t>(shape_.top_k);
  }
  return h.kind == Kind::kRows && h.num_tokens <= max_tokens && h.num_rows <= h.num_tokens;
}

size_t TcpPeers::payload_bytes(const Head& h) const {
  return static_cast<size_t>(h.num_tokens) * shape_.top_k * sizeof(int32_t) + h.num_rows * shape_.row_bytes;
}

bool TcpPeers::deliver(Peer& p) {
  Inbox& inbox = p.inboxes[p.head.microbatch];
  const std::lock_guard lock(mutex_);
  if (p.head.kind == Kind::kRows) return deliver_rows(p, inbox);
  if (inbox.outputs_ready) return p.gone = "it sent outputs twice", false;
  std::swap(inbox.outputs, p.payload);
  inbox.outputs_ready = true;
  arrived_.notify_all();
  return true;
}

bool TcpPeers::deliver_rows(Peer& p, Inbox& inbox) {
  const Head& h = p.head;
  Rows& rows = inbox.rows;
  if (inbox.rows_ready) return p.gone = "it sent rows twice", false;
  const size_t num_ids = static_cast<size_t>(h.num_tokens) * shape_.top_k;
  const auto* ids = reinterpret_cast<const int32_t*>(p.payload.data());
  rows.num_tokens = static_cast<int>(h.num_tokens);
  rows.more = h.more != 0;
  rows.ids.assign(ids, ids + num_ids);
  rows.row_of_token.clear();
  int32_t next = 0;
  const int first_expert = shape_.my_rank * shape_.num_local_experts;
  for (uint32_t t = 0; t < h.num_tokens; ++t) {
    const int32_t* of_token = ids + static_cast<size_t>(t) * shape_.top_k;
    const bool here = std::any_of(of_token, of_token + shape_.top_k, [&](int32_t id) {
      return id >= first_expert && id < first_expert + shape_.num_local_experts;
    });
    rows.row_of_token.push_back(here ? next++ : -1);
  }
  if (next != static_cast<int32_t>(h.num_rows)) return p.gone = "its rows do not fit its routing", false;
  rows.rows.assign(p.payload.begin() + static_cast<ptrdiff_t>(num_ids * sizeof(int32_t)), p.payload.end());
  inbox.rows_ready = true;
  arrived_.notify_all();
  return true;
}

}  // namespace manta::ep
