#include "ep/group/peer_service.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "ep/group/dial.h"
#include "ep/host.h"

namespace manta::ep {

namespace {

constexpr size_t kMaxVisitors = 1024;  // connections that have not said, or may not yet hear, who they are
constexpr int kBacklog = 1024;
constexpr auto kAcceptPause = std::chrono::milliseconds(200);  // when descriptors have run out

Error failed(const std::string& what) {
  return error(ErrorCode::kUnavailable, fmt::format("expert transport: {}: {}", what, std::strerror(errno)));
}

bool same_user(int socket) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == ::geteuid() || peer.uid == 0);
}

}  // namespace

// A connection between accept and answer.
struct PeerService::Visitor {
  Fd socket;
  bool is_unix = false;
  Hello hello;
  size_t num_bytes = 0;  // of the hello
  Fd passed;             // its segment
};

Result<std::unique_ptr<PeerService>> PeerService::start(const Options& options) {
  std::unique_ptr<PeerService> service(new PeerService());
  service->address_.key = random_key();
  service->wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!service->wake_) return failed("eventfd");
  if (options.listen_unix) MANTA_TRY(service->listen_unix());
  if (options.listen_tcp) MANTA_TRY(service->listen_tcp(options.interface));
  service->thread_ = std::thread([raw = service.get()] { raw->run(); });
  return service;
}

PeerService::~PeerService() {
  stopping_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
}

Status PeerService::listen_unix() {
  address_.unix_name = fmt::format("manta-ep-{:02x}", fmt::join(random_key(), ""));
  const UnixAddress address(address_.unix_name);
  unix_listener_ = Fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!unix_listener_ || ::bind(unix_listener_.get(), address.get(), address.size()) != 0 ||
      ::listen(unix_listener_.get(), kBacklog) != 0) {
    return failed("a unix socket to listen on");
  }
  return {};
}

Status PeerService::listen_tcp(const std::string& interface) {
  MANTA_ASSIGN(address_.tcp_host, interface_address(interface));
  MANTA_ASSIGN(const TcpAddress address, TcpAddress::make(address_.tcp_host, 0));
  tcp_listener_ = Fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_storage bound = {};
  socklen_t size = sizeof(bound);
  if (!tcp_listener_ || ::bind(tcp_listener_.get(), address.get(), address.size()) != 0 ||
      ::listen(tcp_listener_.get(), kBacklog) != 0 ||
      ::getsockname(tcp_listener_.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    return failed(fmt::format("listening on {}", address_.tcp_host));
  }
  address_.tcp_port = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                                        : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  return {};
}

void PeerService::serve(std::shared_ptr<Group> group) {
  std::shared_ptr<Group> before;  // its sockets close outside the lock
  {
    const std::lock_guard lock(mutex_);
    before = std::exchange(group_, std::move(group));
    ++generation_;
    if (group_) current_ = std::max(current_, group_->epoch());
  }
  wake();
}

void PeerService::set_current_epoch(Epoch epoch) {
  {
    const std::lock_guard lock(mutex_);
    current_ = std::max(current_, epoch);
  }
  wake();
}

void PeerService::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof(one));
}

Status PeerService::connect(Group& group, std::chrono::steady_clock::time_point deadline) {
  for (int r = 0; r < group.rank(); ++r) {
    const Status dialled = dial(
        group, r, [this] { wake(); }, deadline);
    if (!dialled.ok() && group.failed()) return group.status();
    if (!dialled.ok()) {
      return error(dialled.error().code, fmt::format("{} {}", group.name(r), dialled.error().message));
    }
    wake();  // to be served
  }
  return group.wait_connected(deadline);
}

// ---- the thread ---------------------------------------------------------------------------------------------------

void PeerService::run() {
  std::vector<pollfd> fds;
  while (!stopping_) {
    uint64_t generation = 0;
    int timeout_ms = -1;
    {
      const std::lock_guard lock(mutex_);
      // Visitors that came too early for an epoch may be answered now.
      std::erase_if(visitors_, [this](auto& v) { return v->num_bytes == sizeof(Hello) && !answer(*v); });
      generation = generation_;
      fds.clear();
      collect(fds);
      if (accept_again_ > std::chrono::steady_clock::now()) timeout_ms = static_cast<int>(kAcceptPause.count());
    }
    if (::poll(fds.data(), fds.size(), timeout_ms) < 0) continue;
    if (fds[0].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof(count));
    }
    const std::lock_guard lock(mutex_);
    if (generation == generation_) handle(fds);
  }
}

// The order is handle()'s: the eventfd, listeners, visitors, then the group's peers by rank.
void PeerService::collect(std::vector<pollfd>& fds) {
  const bool accepts = accept_again_ <= std::chrono::steady_clock::now();
  fds.push_back({wake_.get(), POLLIN, 0});
  fds.push_back({accepts ? unix_listener_.get() : -1, POLLIN, 0});
  fds.push_back({accepts ? tcp_listener_.get() : -1, POLLIN, 0});
  for (const auto& visitor : visitors_) {
    // One that waits for our epoch has nothing to say: only its end matters.
    fds.push_back({visitor->socket.get(), static_cast<short>(visitor->num_bytes < sizeof(Hello) ? POLLIN : 0), 0});
  }
  for (int r = 0; group_ && r < group_->size(); ++r) {
    const Group::Peer& peer = group_->peer(r);
    pollfd entry = {-1, POLLIN, 0};
    if (peer.connected && !group_->failed()) {
      if (peer.socket) entry.fd = peer.socket.get();
      if (peer.stream) entry.fd = peer.stream->fd();
      if (peer.stream && peer.stream->wants_write()) entry.events |= POLLOUT;
    }
    fds.push_back(entry);
  }
}

void PeerService::handle(const std::vector<pollfd>& fds) {
  const size_t num_visitors = visitors_.size();
  for (int r = 0; group_ && r < group_->size(); ++r) {
    const pollfd& entry = fds[3 + num_visitors + r];
    if (entry.fd >= 0 && entry.revents != 0) serve_peer(r, entry.revents);
  }
  size_t i = 0;
  std::erase_if(visitors_, [&](auto& visitor) {
    const short events = fds[3 + i++].revents;
    if (events == 0) return false;
    return visitor->num_bytes == sizeof(Hello) || !read_hello(*visitor);
  });
  if (fds[1].revents != 0) accept_from(unix_listener_, true);
  if (fds[2].revents != 0) accept_from(tcp_listener_, false);
}

void PeerService::accept_from(Fd& listener, bool is_unix) {
  while (true) {
    Fd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket && (errno == EINTR || errno == ECONNABORTED)) continue;
    if (!socket) {
      if (errno != EAGAIN) accept_again_ = std::chrono::steady_clock::now() + kAcceptPause;
      return;
    }
    if (is_unix && !same_user(socket.get())) continue;
    auto visitor = std::make_unique<Visitor>();
    visitor->socket = std::move(socket);
    visitor->is_unix = is_unix;
    if (visitors_.size() == kMaxVisitors) visitors_.erase(visitors_.begin());  // who said nothing for longest
    visitors_.push_back(std::move(visitor));
  }
}

// False: nobody of ours, or gone.
bool PeerService::read_hello(Visitor& visitor) {
  const ssize_t n = receive_record(visitor.socket.get(), reinterpret_cast<char*>(&visitor.hello) + visitor.num_bytes,
                                   sizeof(Hello) - visitor.num_bytes, &visitor.passed);
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  visitor.num_bytes += static_cast<size_t>(n);
  if (visitor.num_bytes < sizeof(Hello)) return true;
  if (visitor.hello.magic != Hello::kMagic || visitor.hello.key != address_.key) return false;
  return answer(visitor);
}

// False: answered. True: it is ahead of this rank and waits.
bool PeerService::answer(Visitor& visitor) {
  const Epoch epoch{visitor.hello.epoch};
  if (epoch >= current_ && !(group_ && group_->epoch() == epoch)) return true;
  Answer out;
  out.epoch = current_.value;
  if (epoch < current_) {
    out.verdict = Answer::kOtherEpoch;
  } else if (welcome(visitor, out)) {
    return false;
  }
  send_record(visitor.socket.get(), &out, sizeof(out), -1);
  return false;
}

// Puts the visitor into the group, or says in `out` why not.
bool PeerService::welcome(Visitor& visitor, Answer& out) {
  Group& group = *group_;
  const int rank = visitor.hello.rank;
  std::string reason = difference(group.shape(), visitor.hello.shape());
  if (reason.empty() && (rank <= group.rank() || rank >= group.size())) {
    reason = fmt::format("rank {} of {} does not connect to rank {}", rank, group.size(), group.rank());
  }
  const LinkKind kind = visitor.is_unix ? LinkKind::kShared : LinkKind::kTcp;
  if (reason.empty() && (group.peer(rank).kind != kind || group.peer(rank).connected)) {
    reason = fmt::format("rank {} is connected already, or over another network", rank);
  }
  Status status;
  if (reason.empty()) {
    out.verdict = Answer::kYes;
    status = attach(
        group, rank, std::move(visitor.socket), std::move(visitor.passed), [this] { wake(); },
        [&](int socket) {
          return send_record(socket, &out, sizeof(out), kind == LinkKind::kShared ? group.own().fd() : -1);
        });
    if (status.ok()) return true;
    group.lost(rank, status.error());
    return true;  // its socket went with it
  }
  out.verdict = Answer::kNo;
  out.reason[reason.copy(out.reason, sizeof(out.reason) - 1)] = 0;
  if (rank > group.rank() && rank < group.size() && !group.peer(rank).connected) {
    group.lost(rank, error(ErrorCode::kFailedPrecondition, "was refused: " + reason));
  }
  return false;
}

void PeerService::serve_peer(int rank, short events) {
  Group& group = *group_;
  Group::Peer& peer = group.peer(rank);
  Status status;
  if (peer.stream) {
    if (events & POLLOUT) status = peer.stream->on_writable();
    if (status.ok() && (events & (POLLIN | POLLHUP | POLLERR))) {
      status = peer.stream->on_readable([&](Half half, int microbatch) {
        Mailbox& box = group.own().mailbox(microbatch);
        (half == Half::kDispatch ? box.dispatched : box.combined).arrive(static_cast<uint32_t>(group.size() - 1));
      });
    }
  } else {
    status = error(ErrorCode::kUnavailable, "closed its connection");  // nothing else is ever sent there
  }
  if (!status.ok()) group.lost(rank, status.error());
}

}  // namespace manta::ep
