// The api's side of the internal hop: takes routers' connections on one event loop, hands their requests to the same
// handlers as HTTP's, and sends the answers back as pieces.
//
// Bounds: a stream's bytes wait in the router at its client's connection, which is cut off and cancelled when the
// client does not read; a router that does not read is cut off when base's kMaxQueuedBytes wait for it. Neither holds
// up another stream or router.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "api/generator.h"
#include "api/http/flush_queue.h"
#include "api/http/message.h"
#include "base/result.h"

namespace manta::api {

struct RelayOptions {
  std::string address;  // "unix:@name", "tcp:host:port", port 0: any
  size_t max_body_bytes = 32 << 20;
  int first_rank = 0;  // of those the generator counts from; routers name ranks of the whole deployment
  std::function<const Generator*()> generator;  // null before there is one
  std::function<void()> on_idle;                // whenever the last stream has ended
};

class RelayServer {
 public:
  // service outlives it.
  static Result<std::unique_ptr<RelayServer>> open(boost::asio::io_context& io, FlushQueue& flush_queue,
                                                   HttpService& service, RelayOptions options);
  virtual ~RelayServer() = default;                // after abort()
  virtual const std::string& address() const = 0;  // with the port that was bound
  virtual void drain() = 0;                        // routers are told to send nothing more
  virtual void abort() = 0;  // all streams end now, their handlers are told soon; what is queued still leaves
  virtual size_t num_streams() const = 0;
};

}  // namespace manta::api
