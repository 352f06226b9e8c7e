// One client connection: reads requests one after the other, hands each to the service, sends the answer. While an
// answer is being made the socket is still read: an end of file means the client is gone, whatever it still might read
// (as uvicorn, Go and nginx see it), and bytes are the next request, kept up to a bound.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "api/http/flush_queue.h"
#include "api/http/message.h"
#include "api/http/transport.h"

namespace manta::api {

struct HttpLimits {
  size_t max_header_bytes = 4 << 20;
  size_t max_header_count = 256;
  size_t max_body_bytes = 32 << 20;
  size_t max_pipelined_bytes = 64 << 10;  // read ahead while an answer is being made
  // Bytes waiting for one client. A client that does not read its stream is cut off here, and its request aborted.
  size_t max_backlog_bytes = 1 << 20;

  std::chrono::milliseconds idle_timeout{5'000};     // between requests
  std::chrono::milliseconds header_timeout{30'000};  // TLS handshake; first byte of a request to the end of its head
  std::chrono::milliseconds body_timeout{30'000};    // without a byte of the body
  std::chrono::milliseconds body_deadline{600'000};  // the whole body
  std::chrono::milliseconds write_timeout{60'000};   // bytes wait and the client takes none
  std::chrono::milliseconds linger_timeout{1'000};   // unread input is discarded, so that the answer is not lost
};

// Where connections report to. Outlives them.
struct ConnectionHost {
  asio::io_context& io;
  FlushQueue& flush_queue;
  HttpService& service;
  const HttpLimits& limits;
};

class Connection {
 public:
  virtual ~Connection() = default;
  // Ends it now when it waits for a request, else with the response in progress.
  virtual void drain() = 0;
  // Ends it now; a response in progress is cut off and its handler told.
  virtual void abort() = 0;
};

// Starts it; on_end runs once, as the last thing.
std::shared_ptr<Connection> start_connection(const ConnectionHost& host, std::unique_ptr<Transport> transport,
                                             std::function<void()> on_end);

}  // namespace manta::api
