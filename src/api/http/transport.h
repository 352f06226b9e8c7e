// A connected byte stream to one client: TCP, a unix socket, or TLS over TCP. Used on its loop's thread.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/system/error_code.hpp>
#include <functional>
#include <memory>
#include <string_view>

namespace manta::api {

namespace asio = boost::asio;
using boost::system::error_code;
// Bound to io_context's executor, not to the type-erased one: one indirect call less per operation.
using StreamSocket = asio::basic_stream_socket<asio::generic::stream_protocol, asio::io_context::executor_type>;

class Transport {
 public:
  using OnIo = std::function<void(error_code, size_t)>;
  using OnDone = std::function<void(error_code)>;

  virtual ~Transport() = default;
  virtual void handshake(OnDone done) = 0;
  // At most one read and one write at a time. An end of file is an error_code. Callbacks never run inside the call.
  virtual void read_some(asio::mutable_buffer buffer, OnIo done) = 0;
  virtual void write_some(asio::const_buffer buffer, OnIo done) = 0;
  // Hands bytes over without waiting and says how many were taken: 0 when the peer does not keep up, or where the
  // transport cannot know. The way of every streamed token: no trip through the reactor.
  virtual size_t write_now(std::string_view bytes, error_code& ec) = 0;
  // Tells the peer that nothing more comes; reading goes on.
  virtual void shutdown_send() = 0;
  virtual void close() = 0;
};

std::unique_ptr<Transport> make_plain_transport(StreamSocket socket);

}  // namespace manta::api
