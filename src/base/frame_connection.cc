#include "base/frame_connection.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <boost/asio.hpp>
#include <charconv>
#include <cstring>
#include <deque>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "base/log.h"

namespace manta {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Protocol = asio::generic::stream_protocol;
using Socket = Protocol::socket;
using Endpoint = Protocol::endpoint;
using Resolver = asio::ip::tcp::resolver;

class Connection : public FrameConnection, public std::enable_shared_from_this<Connection> {
 public:
  explicit Connection(Socket socket) : socket_(std::move(socket)) {}

  void start(OnFrame on_frame, OnClose on_close) override {
    on_frame_ = std::move(on_frame);
    on_close_ = std::move(on_close);
    read();
  }

  void send(FrameKind kind, Epoch epoch, std::string_view payload) override {
    if (closed_ || finishing_) return;
    enqueue(encode_frame(kind, epoch, payload));
  }

  void send_now(FrameKind kind, Epoch epoch, std::string_view payload) override {
    if (closed_ || finishing_) return;
    std::string frame = encode_frame(kind, epoch, payload);
    if (queued_bytes_ == 0) {
      const ssize_t sent = ::send(socket_.native_handle(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent == static_cast<ssize_t>(frame.size())) return;
      if (sent > 0) frame.erase(0, static_cast<size_t>(sent));
      // What went wrong, if anything did, the queued write finds out and tells.
    }
    enqueue(std::move(frame));
  }

  void finish(const std::string& why) override {
    if (closed_ || finishing_) return;
    finishing_ = true;
    finish_reason_ = why;
    schedule_write();
  }

  void close(const std::string& why) override {
    if (std::exchange(closed_, true)) return;
    error_code ignored;
    socket_.close(ignored);
    queue_.clear();
    queued_bytes_ = 0;
    asio::post(socket_.get_executor(), [self = shared_from_this(), why] {
      OnClose on_close = std::exchange(self->on_close_, nullptr);
      self->on_frame_ = nullptr;
      if (on_close) on_close(Error{ErrorCode::kUnavailable, why});
    });
  }

  size_t queued_bytes() const override { return queued_bytes_; }

 private:
  void enqueue(std::string frame) {
    queued_bytes_ += frame.size();
    queue_.push_back(std::move(frame));
    if (queued_bytes_ > kMaxQueuedBytes) {
      close(fmt::format("peer does not read: {} bytes queued, at most {}", queued_bytes_, kMaxQueuedBytes));
      return;
    }
    schedule_write();
  }

  void read() {
    socket_.async_read_some(asio::buffer(inbox_), [self = shared_from_this()](error_code ec, size_t n) {
      if (self->closed_) return;
      if (ec) return self->close(ec == asio::error::eof ? "peer closed the connection" : ec.message());
      self->decoder_.feed({self->inbox_.data(), n});
      if (self->deliver()) self->read();
    });
  }

  // False once the connection is closed.
  bool deliver() {
    while (!closed_ && !finishing_) {
      auto frame = decoder_.next();
      if (!frame.ok()) {
        close(frame.error().message);
        return false;
      }
      if (!frame->has_value()) return true;
      if (on_frame_) on_frame_(std::move(**frame));  // it may close us, which drops on_frame_ in a later turn
    }
    return !closed_;
  }

  void schedule_write() {
    if (writing_ || write_posted_) return;
    write_posted_ = true;
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      self->write_posted_ = false;
      self->write();
    });
  }

  void write() {
    if (closed_ || writing_) return;
    if (queue_.empty()) {
      if (finishing_) close(finish_reason_);
      return;
    }
    writing_ = true;
    sending_.assign(std::make_move_iterator(queue_.begin()), std::make_move_iterator(queue_.end()));
    queue_.clear();
    std::vector<asio::const_buffer> buffers;
    buffers.reserve(sending_.size());
    for (const auto& bytes : sending_) buffers.emplace_back(bytes.data(), bytes.size());
    asio::async_write(socket_, buffers, [self = shared_from_this()](error_code ec, size_t n) {
      self->writing_ = false;
      if (self->closed_) return;
      if (ec) return self->close(ec.message());
      self->queued_bytes_ -= n;
      self->write();
    });
  }

  Socket socket_;
  OnFrame on_frame_;
  OnClose on_close_;
  FrameDecoder decoder_;
  std::array<char, 64 << 10> inbox_;
  std::deque<std::string> queue_;     // waiting for the next write
  std::vector<std::string> sending_;  // in the write that runs
  size_t queued_bytes_ = 0;           // both
  bool writing_ = false;
  bool write_posted_ = false;
  bool finishing_ = false;
  bool closed_ = false;
  std::string finish_reason_;
};

Result<Endpoint> unix_endpoint(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const bool abstract = !name.empty() && name[0] == '@';
  if (name.empty() || name.size() >= sizeof address.sun_path) {
    return error(ErrorCode::kInvalidArgument, fmt::format("unix socket name \"{}\": must have 1 to {} characters", name,
                                                          sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, name.data(), name.size());
  if (abstract) address.sun_path[0] = '\0';
  const size_t length = offsetof(sockaddr_un, sun_path) + name.size() + (abstract ? 0 : 1);
  return Endpoint(&address, length, 0);
}

Result<std::pair<std::string, uint16_t>> split_host_port(const std::string& text) {
  const size_t colon = text.rfind(':');
  unsigned port = 0;
  const char* end = text.data() + text.size();
  if (colon != std::string::npos) {
    const auto [ptr, ec] = std::from_chars(text.data() + colon + 1, end, port);
    if (ec == std::errc{} && ptr == end && port <= 65535) {
      std::string host = text.substr(0, colon);
      if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
      return std::pair{host, static_cast<uint16_t>(port)};
    }
  }
  return error(ErrorCode::kInvalidArgument, fmt::format("address \"{}\": expected host:port, port 0 to 65535", text));
}

// What an address says.
struct Destination {
  std::optional<Endpoint> endpoint;  // empty: host is a name, to be looked up
  std::string host;
  uint16_t port = 0;
};

Result<Destination> parse_address(const std::string& address) {
  Destination out;
  if (address.starts_with("unix:")) {
    MANTA_ASSIGN(out.endpoint, unix_endpoint(address.substr(5)));
    return out;
  }
  if (!address.starts_with("tcp:")) {
    return error(ErrorCode::kInvalidArgument, fmt::format("address \"{}\": must start with unix: or tcp:", address));
  }
  MANTA_ASSIGN(std::tie(out.host, out.port), split_host_port(address.substr(4)));
  error_code is_a_name;
  const auto number = asio::ip::make_address(out.host, is_a_name);
  if (!is_a_name) out.endpoint = asio::ip::tcp::endpoint(number, out.port);
  return out;
}

Result<Endpoint> first_of(const Resolver::results_type& found, error_code ec, const std::string& address) {
  if (ec || found.empty()) {
    return error(ErrorCode::kUnavailable, fmt::format("address \"{}\": {}", address, ec.message()));
  }
  return Endpoint(found.begin()->endpoint());
}

// Waits for the name server: for what is opened once, before anybody depends on this thread.
Result<Endpoint> resolve_now(asio::io_context& io, const std::string& address) {
  MANTA_ASSIGN(const Destination to, parse_address(address));
  if (to.endpoint) return *to.endpoint;
  error_code ec;
  Resolver resolver(io);
  const auto found = resolver.resolve(to.host, std::to_string(to.port), ec);
  return first_of(found, ec, address);
}

// Calls back in a later turn of the loop, which a slow name server does not hold up.
void resolve(asio::io_context& io, const std::string& address, std::function<void(Result<Endpoint>)> done) {
  const auto to = parse_address(address);
  if (!to.ok()) return asio::post(io, [done = std::move(done), e = to.error()] { done(e); });
  if (to->endpoint) return asio::post(io, [done = std::move(done), e = *to->endpoint] { done(e); });
  const auto resolver = std::make_shared<Resolver>(io);
  resolver->async_resolve(
      to->host, std::to_string(to->port),
      [resolver, address, done = std::move(done)](error_code ec, const Resolver::results_type& found) {
        done(first_of(found, ec, address));
      });
}

bool is_tcp(const std::string& address) {
  return address.starts_with("tcp:");
}

// Small frames leave at once. A peer that nothing comes back from is gone after kTcpSilence, also when nothing is sent:
// a cut cable closes no connection. A connect gives up after its second packet (3 s): whoever wants it tries again,
// sooner than a third packet would after a long cut.
void set_tcp_options(Socket& socket) {
  const auto set = [&socket](int level, int option, int value) {
    ::setsockopt(socket.native_handle(), level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 1);  // s
  set(IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(kTcpSilence.count()));
  set(IPPROTO_TCP, TCP_SYNCNT, 1);
}

// Anybody on the node may connect to an abstract socket; only our own user may speak.
bool same_user(Socket& socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return false;
  return peer.uid == ::geteuid() || peer.uid == 0;
}

class Listener : public FrameListener {
 public:
  Listener(asio::io_context& io, std::string address, std::function<void(FrameConnectionPtr)> on_accept)
      : state_(std::make_shared<State>(io, std::move(address), std::move(on_accept))) {}
  ~Listener() override { Listener::close(); }

  Status open(const Endpoint& endpoint) {
    error_code ec;
    auto& acceptor = state_->acceptor;
    acceptor.open(endpoint.protocol(), ec);
    if (!ec && is_tcp(state_->address)) acceptor.set_option(asio::socket_base::reuse_address(true), ec);
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(asio::socket_base::max_listen_connections, ec);
    if (ec) return error(ErrorCode::kUnavailable, fmt::format("listen on {}: {}", state_->address, ec.message()));
    if (is_tcp(state_->address)) state_->address = bound_address();
    accept(state_);
    return {};
  }

  const std::string& address() const override { return state_->address; }
  void close() override {
    error_code ignored;
    state_->acceptor.close(ignored);
    state_->on_accept = nullptr;
  }

 private:
  struct State {
    State(asio::io_context& io, std::string address, std::function<void(FrameConnectionPtr)> on_accept)
        : acceptor(io), address(std::move(address)), on_accept(std::move(on_accept)), retry(io) {}
    asio::basic_socket_acceptor<Protocol> acceptor;
    std::string address;
    std::function<void(FrameConnectionPtr)> on_accept;
    asio::steady_timer retry;
  };

  std::string bound_address() const {
    const Endpoint local = state_->acceptor.local_endpoint();
    asio::ip::tcp::endpoint tcp;
    std::memcpy(tcp.data(), local.data(), local.size());
    const std::string host = tcp.address().to_string();
    return tcp.address().is_v6() ? fmt::format("tcp:[{}]:{}", host, tcp.port())
                                 : fmt::format("tcp:{}:{}", host, tcp.port());
  }

  static void accept(const std::shared_ptr<State>& state) {
    state->acceptor.async_accept([state](error_code ec, Socket socket) {
      if (!state->on_accept || ec == asio::error::operation_aborted) return;
      if (ec) {
        // Out of descriptors, most likely. Wait for some to come back instead of asking in a loop.
        spdlog::warn("accept on {}: {}", state->address, ec.message());
        state->retry.expires_after(std::chrono::milliseconds(100));
        state->retry.async_wait([state](error_code stop) {
          if (!stop) accept(state);
        });
        return;
      }
      if (is_tcp(state->address)) {
        set_tcp_options(socket);
        state->on_accept(std::make_shared<Connection>(std::move(socket)));
      } else if (same_user(socket)) {
        state->on_accept(std::make_shared<Connection>(std::move(socket)));
      } else {
        spdlog::warn("{}: refused a connection of another user", state->address);
      }
      accept(state);
    });
  }

  std::shared_ptr<State> state_;
};

}  // namespace

void connect_frames(asio::io_context& io, const std::string& address,
                    std::function<void(Result<FrameConnectionPtr>)> done) {
  resolve(io, address, [&io, address, done = std::move(done)](Result<Endpoint> endpoint) {
    if (!endpoint.ok()) return done(endpoint.error());
    auto socket = std::make_shared<Socket>(io);
    error_code cannot_open;
    socket->open(endpoint->protocol(), cannot_open);
    if (is_tcp(address)) set_tcp_options(*socket);
    socket->async_connect(*endpoint, [socket, address, done](error_code ec) {
      if (ec) return done(error(ErrorCode::kUnavailable, fmt::format("connect to {}: {}", address, ec.message())));
      done(FrameConnectionPtr(std::make_shared<Connection>(std::move(*socket))));
    });
  });
}

Result<std::unique_ptr<FrameListener>> listen_frames(asio::io_context& io, const std::string& address,
                                                     std::function<void(FrameConnectionPtr)> on_accept) {
  MANTA_ASSIGN(const Endpoint endpoint, resolve_now(io, address));
  auto listener = std::make_unique<Listener>(io, address, std::move(on_accept));
  MANTA_TRY(listener->open(endpoint));
  return std::unique_ptr<FrameListener>(std::move(listener));
}

}  // namespace manta
