// The one listening socket of the server: TCP or a unix socket. New connections are handed to the event loop that has
// the fewest, so that long streams spread evenly whatever order they came in (SO_REUSEPORT would hash them, and would
// let a second server take the port unnoticed).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "api/http/transport.h"
#include "base/result.h"

namespace manta::api {

struct ListenAddress {
  std::string host;  // empty: all interfaces
  uint16_t port = 0;
  std::optional<std::string> unix_path;  // instead of host and port
};

class Listener {
 public:
  // Where a new connection goes.
  using PickLoop = std::function<asio::io_context&()>;
  // On the accepting loop's thread; the socket belongs to the loop that was picked.
  using OnAccept = std::function<void(StreamSocket socket)>;

  // Binds and listens; accepting begins with start(). kUnavailable: the address is taken or unknown on this host.
  static Result<std::unique_ptr<Listener>> open(asio::io_context& io, const ListenAddress& address);
  virtual ~Listener() = default;
  virtual void start(PickLoop pick_loop, OnAccept on_accept) = 0;
  virtual uint16_t port() const = 0;  // 0 for a unix socket
  virtual void close() = 0;           // on the accepting loop's thread
};

}  // namespace manta::api
