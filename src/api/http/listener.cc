#include "api/http/listener.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>
#include <utility>
#include <vector>

#include "base/log.h"

namespace manta::api {
namespace {

using Protocol = asio::generic::stream_protocol;
using Acceptor = asio::basic_socket_acceptor<Protocol, asio::io_context::executor_type>;
using Endpoint = Protocol::endpoint;

// Where the accepting loop asks again when there is no descriptor left.
constexpr std::chrono::milliseconds kRetryAfter{100};

bool is_tcp(const Endpoint& endpoint) {
  return endpoint.protocol().family() != AF_UNIX;
}

uint16_t port_of(const Endpoint& endpoint) {
  if (!is_tcp(endpoint)) return 0;
  asio::ip::tcp::endpoint tcp;
  std::memcpy(tcp.data(), endpoint.data(), endpoint.size());
  return tcp.port();
}

class SocketListener : public Listener {
 public:
  explicit SocketListener(asio::io_context& io) : acceptor_(io), retry_(io) {}
  ~SocketListener() override {
    if (!unix_path_.empty()) ::unlink(unix_path_.c_str());
  }

  error_code open(const Endpoint& endpoint) {
    error_code ec;
    acceptor_.open(endpoint.protocol(), ec);
    if (!ec && is_tcp(endpoint)) acceptor_.set_option(asio::socket_base::reuse_address(true), ec);
    // "::" takes IPv4 as well.
    if (!ec && endpoint.protocol().family() == AF_INET6) acceptor_.set_option(asio::ip::v6_only(false), ec);
    if (!ec) acceptor_.bind(endpoint, ec);
    if (!ec) acceptor_.listen(asio::socket_base::max_listen_connections, ec);
    if (!ec) port_ = port_of(acceptor_.local_endpoint());
    if (ec) acceptor_.close();
    return ec;
  }
  void owns_file(std::string path) { unix_path_ = std::move(path); }

  void start(PickLoop pick_loop, OnAccept on_accept) override {
    pick_loop_ = std::move(pick_loop);
    on_accept_ = std::move(on_accept);
    accept();
  }
  uint16_t port() const override { return port_; }
  void close() override {
    error_code ignored;
    acceptor_.close(ignored);
    retry_.cancel();
    on_accept_ = nullptr;
  }

 private:
  void accept() {
    socket_.emplace(pick_loop_());
    acceptor_.async_accept(*socket_, [this](error_code ec) {
      if (!on_accept_ || ec == asio::error::operation_aborted) return;
      if (ec) return accept_later(ec);
      if (port_ != 0) {
        const int on = 1;
        ::setsockopt(socket_->native_handle(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      }
      on_accept_(std::move(*socket_));
      accept();
    });
  }

  // Out of descriptors, most likely. Waits for some to come back instead of asking in a loop.
  void accept_later(const error_code& why) {
    spdlog::warn("accept: {}", why.message());
    retry_.expires_after(kRetryAfter);
    retry_.async_wait([this](error_code ec) {
      if (!ec && on_accept_) accept();
    });
  }

  Acceptor acceptor_;
  asio::steady_timer retry_;
  std::optional<StreamSocket> socket_;  // of the accept in progress
  PickLoop pick_loop_;
  OnAccept on_accept_;
  uint16_t port_ = 0;
  std::string unix_path_;
};

Result<std::vector<Endpoint>> candidates(asio::io_context& io, const ListenAddress& address) {
  using asio::ip::tcp;
  if (address.unix_path) {
    if (address.unix_path->empty() || address.unix_path->size() >= sizeof(sockaddr_un{}.sun_path)) {
      return error(ErrorCode::kInvalidArgument, fmt::format("uds {}: must have 1 to {} characters", *address.unix_path,
                                                            sizeof(sockaddr_un{}.sun_path) - 1));
    }
    return std::vector<Endpoint>{asio::local::stream_protocol::endpoint(*address.unix_path)};
  }
  if (address.host.empty()) {  // the second where the kernel has no IPv6
    return std::vector<Endpoint>{tcp::endpoint(tcp::v6(), address.port), tcp::endpoint(tcp::v4(), address.port)};
  }
  error_code ec;
  std::vector<Endpoint> found;
  tcp::resolver resolver(io);
  for (const auto& entry : resolver.resolve(address.host, std::to_string(address.port), ec)) {
    found.emplace_back(entry.endpoint());
  }
  if (found.empty()) return error(ErrorCode::kUnavailable, fmt::format("host {}: {}", address.host, ec.message()));
  return found;
}

// A socket file that nobody listens behind is left over from a server that was killed.
void remove_stale(asio::io_context& io, const std::string& path) {
  asio::local::stream_protocol::socket probe(io);
  error_code ec;
  probe.connect(asio::local::stream_protocol::endpoint(path), ec);
  if (ec == asio::error::connection_refused) ::unlink(path.c_str());
}

}  // namespace

Result<std::unique_ptr<Listener>> Listener::open(asio::io_context& io, const ListenAddress& address) {
  MANTA_ASSIGN(const auto endpoints, candidates(io, address));
  if (address.unix_path) remove_stale(io, *address.unix_path);
  error_code ec;
  for (const auto& endpoint : endpoints) {
    auto listener = std::make_unique<SocketListener>(io);
    ec = listener->open(endpoint);
    if (!ec) {
      if (address.unix_path) listener->owns_file(*address.unix_path);
      return std::unique_ptr<Listener>(std::move(listener));
    }
    if (ec == asio::error::address_in_use) break;
  }
  const std::string where = address.unix_path ? *address.unix_path : fmt::format("port {}", address.port);
  const char* hint = ec == asio::error::address_in_use && !address.unix_path ? "; choose another with --port" : "";
  return error(ErrorCode::kUnavailable, fmt::format("cannot listen on {}: {}{}", where, ec.message(), hint));
}

}  // namespace manta::api
