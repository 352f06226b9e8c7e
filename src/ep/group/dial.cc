#include "ep/group/dial.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "ep/group/handshake.h"

namespace manta::ep {

namespace {

using Deadline = std::chrono::steady_clock::time_point;

Error unavailable(const std::string& message) {
  return error(ErrorCode::kUnavailable, message);
}

int ms_until(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

// Parks until the socket is ready or the group has failed.
Status wait_for(const Group& group, int socket, short events, Deadline deadline) {
  while (true) {
    pollfd fds[2] = {{socket, events, 0}, {group.stop_fd(), POLLIN, 0}};
    const int n = ::poll(fds, 2, ms_until(deadline));
    if (n < 0 && errno == EINTR) continue;
    if (fds[1].revents != 0) return group.status();
    if (n > 0) return {};
    return error(ErrorCode::kDeadlineExceeded, "does not answer");
  }
}

Result<Fd> open_unix(const ListenAddress& to, Deadline deadline) {
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return unavailable(fmt::format("unix socket: {}", std::strerror(errno)));
  // Waits only for a place in the listener's queue, which its service thread empties.
  const int ms = std::max(1, ms_until(deadline));
  const timeval limit = {ms / 1000, (ms % 1000) * 1000};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  const UnixAddress address(to.unix_name);
  if (::connect(socket.get(), address.get(), address.size()) != 0) {
    return unavailable(fmt::format("cannot be reached: {}", std::strerror(errno)));
  }
  return socket;
}

Result<Fd> open_tcp(const Group& group, const ListenAddress& to, Deadline deadline) {
  MANTA_ASSIGN(const TcpAddress address, TcpAddress::make(to.tcp_host, to.tcp_port));
  Fd socket(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return unavailable(fmt::format("tcp socket: {}", std::strerror(errno)));
  if (::connect(socket.get(), address.get(), address.size()) != 0) {
    if (errno != EINPROGRESS) return unavailable(fmt::format("cannot be reached: {}", std::strerror(errno)));
    MANTA_TRY(wait_for(group, socket.get(), POLLOUT, deadline));
    int code = 0;
    socklen_t size = sizeof(code);
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &code, &size);
    if (code != 0) return unavailable(fmt::format("cannot be reached: {}", std::strerror(code)));
  }
  return socket;
}

Status receive_answer(const Group& group, int socket, Deadline deadline, Answer& answer, Fd& segment) {
  for (size_t have = 0; have < sizeof(answer);) {
    MANTA_TRY(wait_for(group, socket, POLLIN, deadline));
    const ssize_t n = receive_record(socket, reinterpret_cast<char*>(&answer) + have, sizeof(answer) - have, &segment);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n <= 0) return unavailable("closed the connection without an answer");
    have += static_cast<size_t>(n);
  }
  answer.reason[sizeof(answer.reason) - 1] = 0;
  if (answer.magic != Hello::kMagic) return error(ErrorCode::kDataLoss, "does not speak this version's protocol");
  if (answer.verdict == Answer::kOtherEpoch) {
    return error(ErrorCode::kAborted,
                 fmt::format("is at epoch {}, this rank at {}", answer.epoch, group.epoch().value));
  }
  if (answer.verdict != Answer::kYes) {
    return error(ErrorCode::kFailedPrecondition, fmt::format("refused this rank: {}", answer.reason));
  }
  return {};
}

}  // namespace

UnixAddress::UnixAddress(const std::string& name) {
  address_.sun_family = AF_UNIX;  // sun_path[0] stays 0: abstract
  const size_t n = name.copy(address_.sun_path + 1, sizeof(address_.sun_path) - 1);
  size_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + n);
}

Result<TcpAddress> TcpAddress::make(const std::string& host, uint16_t port) {
  TcpAddress out;
  auto& v4 = reinterpret_cast<sockaddr_in&>(out.address_);
  auto& v6 = reinterpret_cast<sockaddr_in6&>(out.address_);
  if (::inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    out.size_ = sizeof(v4);
  } else if (::inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    out.size_ = sizeof(v6);
  } else {
    return error(ErrorCode::kInvalidArgument, fmt::format("'{}' is not an IP address", host));
  }
  return out;
}

Status attach(Group& group, int rank, Fd socket, Fd segment, std::function<void()> on_unsent,
              const std::function<int(int socket)>& greet) {
  Group::Peer& peer = group.peer(rank);
  const int raw = socket.get();
  if (peer.kind == LinkKind::kShared) {
    if (!segment) return error(ErrorCode::kDataLoss, "sent no segment");
    MANTA_ASSIGN(peer.segment, Segment::open(group.shape(), std::move(segment)));
    peer.socket = std::move(socket);
  } else {
    const int on = 1;
    ::setsockopt(raw, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    peer.stream = std::make_unique<TcpStream>(std::move(socket), group.shape(), std::move(on_unsent));
    MANTA_TRY(peer.stream->allocate());
  }
  if (const int code = greet(raw); code != 0)
    return unavailable(fmt::format("its connection: {}", std::strerror(code)));
  group.connected(rank);
  return {};
}

Status dial(Group& group, int rank, std::function<void()> on_unsent, Deadline deadline) {
  const auto to = ListenAddress::parse(group.topology().peers[rank].address);
  const bool shared = group.peer(rank).kind == LinkKind::kShared;
  if (!to || (shared ? to->unix_name.empty() : to->tcp_host.empty())) {
    return error(ErrorCode::kInvalidArgument, fmt::format("announced no {} address", shared ? "unix" : "tcp"));
  }
  auto opened = shared ? open_unix(*to, deadline) : open_tcp(group, *to, deadline);
  MANTA_ASSIGN(Fd socket, std::move(opened));
  const Hello hello = Hello::of(group.topology(), group.shape(), to->key);
  if (const int code = send_record(socket.get(), &hello, sizeof(hello), shared ? group.own().fd() : -1); code != 0) {
    return unavailable(fmt::format("cannot be reached: {}", std::strerror(code)));
  }
  Answer answer;
  Fd segment;
  MANTA_TRY(receive_answer(group, socket.get(), deadline, answer, segment));
  return attach(group, rank, std::move(socket), std::move(segment), std::move(on_unsent), [](int) { return 0; });
}

}  // namespace manta::ep
