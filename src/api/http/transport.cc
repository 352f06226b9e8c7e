#include "api/http/transport.h"

#include <sys/socket.h>

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <utility>

namespace manta::api {
namespace {

class PlainTransport : public Transport {
 public:
  explicit PlainTransport(StreamSocket socket) : socket_(std::move(socket)) {}

  void handshake(OnDone done) override {
    asio::post(socket_.get_executor(), [done = std::move(done)] { done({}); });
  }
  void read_some(asio::mutable_buffer buffer, OnIo done) override { socket_.async_read_some(buffer, std::move(done)); }
  void write_some(asio::const_buffer buffer, OnIo done) override { socket_.async_write_some(buffer, std::move(done)); }

  size_t write_now(std::string_view bytes, error_code& ec) override {
    const ssize_t n = ::send(socket_.native_handle(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) ec = {errno, boost::system::system_category()};
    return 0;
  }

  void shutdown_send() override {
    error_code ignored;
    socket_.shutdown(StreamSocket::shutdown_send, ignored);
  }
  void close() override {
    error_code ignored;
    socket_.close(ignored);
  }

 private:
  StreamSocket socket_;
};

}  // namespace

std::unique_ptr<Transport> make_plain_transport(StreamSocket socket) {
  return std::make_unique<PlainTransport>(std::move(socket));
}

}  // namespace manta::api
