#include "ep/meeting.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>
#include <sstream>
#include <utility>

namespace manta::ep {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMagic = 0x31304550746e616d;  // "mantEP01"
constexpr std::chrono::milliseconds kRetry{20};

struct Hello {
  uint64_t magic = kMagic;
  uint64_t epoch = 0;
  uint32_t rank = 0;
  uint32_t wants_segment = 0;
};
struct Answer {
  uint64_t magic = kMagic;
  uint64_t epoch = 0;  // of the one who answers; another than asked for: it has moved on
};

Error failed(const std::string& what) {
  return error(ErrorCode::kUnavailable, fmt::format("expert transport: {}: {}", what, std::strerror(errno)));
}

sockaddr_un unix_address(const std::string& name, socklen_t& length) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  std::memcpy(a.sun_path + 1, name.data() + 1, name.size() - 1);  // "@name": abstract, gone with its last socket
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return a;
}

std::optional<sockaddr_in> tcp_address(const std::string& text) {
  const size_t colon = text.rfind(':');
  sockaddr_in a{};
  a.sin_family = AF_INET;
  if (colon == std::string::npos || ::inet_pton(AF_INET, text.substr(0, colon).c_str(), &a.sin_addr) != 1) return {};
  const unsigned long port = std::strtoul(text.c_str() + colon + 1, nullptr, 10);
  if (port > 65535) return {};
  a.sin_port = htons(static_cast<uint16_t>(port));
  return a;
}

Result<OwnedFd> listen_unix(std::string& name) {
  std::random_device random;
  name = fmt::format("@manta-ep-{}-{:08x}{:08x}", ::getpid(), random(), random());
  OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  socklen_t length = 0;
  const sockaddr_un a = unix_address(name, length);
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), length) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    return failed("listening on unix socket " + name);
  }
  return fd;
}

Result<OwnedFd> listen_tcp(const std::string& host, std::string& text) {
  const auto wanted = tcp_address(host + ":0");
  if (!wanted) return error(ErrorCode::kInvalidArgument, fmt::format("{}: not an IPv4 address", host));
  sockaddr_in a = *wanted;
  socklen_t length = sizeof(a);
  OwnedFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), length) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0 || ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&a), &length) != 0) {
    return failed("listening on " + host);
  }
  text = fmt::format("{}:{}", host, ntohs(a.sin_port));
  return fd;
}

// A socket that has begun to connect; invalid with errno EAGAIN: the peer's queue is full, try again.
OwnedFd begin_connect(const std::string& to) {
  if (to[0] == '@') {
    OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    socklen_t length = 0;
    const sockaddr_un a = unix_address(to, length);
    return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), length) == 0 ? std::move(fd) : OwnedFd();
  }
  const auto a = tcp_address(to);
  if (!a) return errno = EINVAL, OwnedFd();
  OwnedFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  const int r = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*a), sizeof(*a));
  return r == 0 || errno == EINPROGRESS ? std::move(fd) : OwnedFd();
}

// Sends `value`, with a descriptor where fd >= 0. It is a few bytes on a fresh socket: all at once or not at all.
template <typename T>
bool send_whole(int socket, const T& value, int fd = -1) {
  iovec part{const_cast<T*>(&value), sizeof(value)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == sizeof(value);
}

enum class Read { kWhole, kMore, kGone };

// Reads `value` once all of it is there. fd: a descriptor that came along.
template <typename T>
Read read_whole(int socket, T& value, OwnedFd* fd = nullptr) {
  const ssize_t there = ::recv(socket, &value, sizeof(value), MSG_PEEK | MSG_DONTWAIT);
  if (there == 0 || (there < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return Read::kGone;
  if (there < static_cast<ssize_t>(sizeof(value))) return Read::kMore;
  iovec part{&value, sizeof(value)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != sizeof(value)) return Read::kGone;
  for (cmsghdr* h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
    if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
    int passed = -1;
    std::memcpy(&passed, CMSG_DATA(h), sizeof(int));
    OwnedFd owned(passed);
    if (fd) *fd = std::move(owned);
  }
  return Read::kWhole;
}

struct Caller {
  OwnedFd fd;
  std::optional<Hello> hello;
};

// One peer while we meet it.
struct Progress {
  OwnedFd connection;  // ours to it
  bool greeted = false;
  bool answered = false;  // it has answered us
  bool came = false;      // it has greeted us
};

class Meeting : public MeetingPoint {
 public:
  Status open(const std::string& tcp_host);
  const std::string& address() const override { return address_; }
  Result<std::vector<MetPeer>> meet(const MeetOptions& options) override;
  void abort(Epoch epoch) override;

 private:
  Status advance(int rank);
  Status call(int rank, Progress& peer);
  void accept_callers();
  void hear_callers();
  void answer(Caller&& caller);
  void park(Clock::time_point until);
  Error missing() const;

  OwnedFd unix_, tcp_, bell_;
  std::string address_;
  std::atomic<uint64_t> ended_below_{0};  // epochs
  std::vector<Caller> callers_;           // some may be early for an epoch that we have not heard of yet

  // Of the meeting under way.
  const MeetOptions* options_ = nullptr;
  std::vector<Progress> progress_;
  std::vector<MetPeer> met_;
};

Status Meeting::open(const std::string& tcp_host) {
  std::string name;
  MANTA_ASSIGN(unix_, listen_unix(name));
  address_ = "unix=" + name;
  if (!tcp_host.empty()) {
    std::string at;
    MANTA_ASSIGN(tcp_, listen_tcp(tcp_host, at));
    address_ += " tcp=" + at;
  }
  bell_ = OwnedFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  return bell_ ? Status() : failed("eventfd");
}

Result<std::vector<MetPeer>> Meeting::meet(const MeetOptions& options) {
  options_ = &options;
  progress_.clear();
  progress_.resize(options.topology.size);
  met_.clear();
  met_.resize(options.topology.size);
  const uint64_t epoch = options.topology.epoch.value;
  uint64_t rung = 0;  // of aborts before this meeting
  [[maybe_unused]] const ssize_t drained = ::read(bell_.get(), &rung, sizeof(rung));
  for (;;) {
    bool complete = true;
    for (int rank = 0; rank < options.topology.size; ++rank) {
      if (rank == options.topology.rank) continue;
      MANTA_TRY(advance(rank));
      complete = complete && progress_[rank].answered && progress_[rank].came;
    }
    if (complete) return std::move(met_);
    if (ended_below_.load() > epoch) return error(ErrorCode::kAborted, fmt::format("epoch {} is over", epoch));
    if (Clock::now() >= options.deadline) return missing();
    park(std::min(options.deadline, Clock::now() + kRetry));
    accept_callers();
    hear_callers();
  }
}

Status Meeting::advance(int rank) {
  Progress& peer = progress_[rank];
  if (peer.answered) return {};
  MANTA_TRY(call(rank, peer));
  if (!peer.greeted) return {};
  Answer answer;
  OwnedFd segment;
  const Read read = read_whole(peer.connection.get(), answer, &segment);
  if (read == Read::kMore) return {};
  if (read == Read::kGone || answer.magic != kMagic) {
    return error(ErrorCode::kUnavailable, fmt::format("expert transport: rank {} closed the connection", rank));
  }
  if (answer.epoch != options_->topology.epoch.value) {
    return error(ErrorCode::kAborted, fmt::format("expert transport: rank {} is at epoch {}, this rank at {}", rank,
                                                  answer.epoch, options_->topology.epoch.value));
  }
  peer.answered = true;
  if (options_->by_segment[rank]) {
    if (!segment) return error(ErrorCode::kInternal, fmt::format("expert transport: rank {} passed no segment", rank));
    met_[rank].segment = std::move(segment);
    peer.connection = OwnedFd();
  } else {
    met_[rank].outgoing = std::move(peer.connection);
  }
  return {};
}

Status Meeting::call(int rank, Progress& peer) {
  if (peer.greeted) return {};
  const bool by_segment = options_->by_segment[rank];
  const std::string& address = options_->topology.peers[rank].address;
  if (!peer.connection) {
    const std::string to = by_segment ? unix_part(address) : tcp_part(address);
    if (to.empty()) {
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("expert transport: rank {} at \"{}\" cannot be reached by {}", rank, address,
                               by_segment ? "shared memory" : "tcp"));
    }
    peer.connection = begin_connect(to);
    if (!peer.connection && errno != EAGAIN) return failed(fmt::format("connecting to rank {} at {}", rank, to));
    if (!peer.connection) return {};
  }
  pollfd writable{peer.connection.get(), POLLOUT, 0};
  if (::poll(&writable, 1, 0) <= 0) return {};
  const Hello hello{kMagic, options_->topology.epoch.value, static_cast<uint32_t>(options_->topology.rank), by_segment};
  if (!send_whole(peer.connection.get(), hello)) return failed(fmt::format("greeting rank {} at {}", rank, address));
  peer.greeted = true;
  return {};
}

void Meeting::accept_callers() {
  for (const OwnedFd* listener : {&unix_, &tcp_}) {
    if (!*listener) continue;
    for (;;) {
      OwnedFd fd(::accept4(listener->get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd) break;
      const int on = 1;
      if (listener == &tcp_) ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      callers_.push_back({std::move(fd), {}});
    }
  }
}

void Meeting::hear_callers() {
  std::vector<Caller> still;
  for (Caller& caller : callers_) {
    if (!caller.hello) {
      Hello hello;
      const Read read = read_whole(caller.fd.get(), hello);
      if (read == Read::kGone) continue;
      if (read == Read::kWhole) {
        if (hello.magic != kMagic || hello.rank >= static_cast<uint32_t>(options_->topology.size)) continue;
        caller.hello = hello;
      }
    }
    // Early: it knows an epoch that we shall hear of. Kept for that meeting.
    if (!caller.hello || caller.hello->epoch > options_->topology.epoch.value) {
      still.push_back(std::move(caller));
    } else {
      answer(std::move(caller));
    }
  }
  callers_ = std::move(still);
}

void Meeting::answer(Caller&& caller) {
  const uint64_t epoch = options_->topology.epoch.value;
  const bool current = caller.hello->epoch == epoch;
  const bool wants_segment = current && caller.hello->wants_segment != 0;
  if (!send_whole(caller.fd.get(), Answer{kMagic, epoch}, wants_segment ? options_->segment_fd : -1) || !current)
    return;
  const uint32_t rank = caller.hello->rank;
  progress_[rank].came = true;
  if (!wants_segment) met_[rank].incoming = std::move(caller.fd);
}

void Meeting::park(Clock::time_point until) {
  std::vector<pollfd> fds = {{bell_.get(), POLLIN, 0}, {unix_.get(), POLLIN, 0}};
  if (tcp_) fds.push_back({tcp_.get(), POLLIN, 0});
  for (const Caller& c : callers_) {
    if (!c.hello) fds.push_back({c.fd.get(), POLLIN, 0});
  }
  for (const Progress& p : progress_) {
    if (p.connection) fds.push_back({p.connection.get(), static_cast<short>(p.greeted ? POLLIN : POLLOUT), 0});
  }
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
  ::poll(fds.data(), fds.size(), static_cast<int>(std::max<int64_t>(left.count(), 0)));
}

Error Meeting::missing() const {
  std::string ranks;
  for (int rank = 0; rank < options_->topology.size; ++rank) {
    if (rank == options_->topology.rank || (progress_[rank].answered && progress_[rank].came)) continue;
    ranks += fmt::format("{}{}", ranks.empty() ? "" : ", ", rank);
  }
  return error(ErrorCode::kDeadlineExceeded, fmt::format("expert transport: rank {} did not come to epoch {}", ranks,
                                                         options_->topology.epoch.value));
}

void Meeting::abort(Epoch epoch) {
  uint64_t before = ended_below_.load();
  while (before < epoch.value && !ended_below_.compare_exchange_weak(before, epoch.value)) {
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t rung = ::write(bell_.get(), &one, sizeof(one));
}

std::string part(const std::string& address, const std::string& key) {
  std::stringstream in(address);
  for (std::string word; in >> word;) {
    if (word.starts_with(key)) return word.substr(key.size());
  }
  return {};
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) ::close(fd_);
}
OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
int OwnedFd::release() {
  return std::exchange(fd_, -1);
}

std::string unix_part(const std::string& address) {
  return part(address, "unix=");
}
std::string tcp_part(const std::string& address) {
  return part(address, "tcp=");
}

Result<std::unique_ptr<MeetingPoint>> MeetingPoint::open(const std::string& tcp_host) {
  auto out = std::make_unique<Meeting>();
  MANTA_TRY(out->open(tcp_host));
  return Result<std::unique_ptr<MeetingPoint>>(std::move(out));
}

}  // namespace manta::ep
