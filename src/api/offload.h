// Work that would hold an event loop up (a long conversation's template, a long prompt's tokens), done on a thread
// beside the loops, so that a long request delays itself and no stream.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>

#include "api/http/message.h"

namespace manta::api {

// Of the process. One thread: long requests wait for each other, and the loops keep the other cores.
struct OffloadPool {
  boost::asio::thread_pool threads{1};
};

// One event loop's way to it. Used on the loop's thread.
class Offload {
 public:
  // Bodies longer than this: 64 KiB are 10 ms of tokenizing on one Zen 4 core, and 0.1 ms of being handed over.
  static constexpr size_t kMinBytes = 16 << 10;

  Offload(OffloadPool& pool, boost::asio::io_context& io) : pool_(pool), io_(io) {}

  // work() on the pool, touching nothing that belongs to the loop; then then() on the loop, unless the writer's client
  // has gone meanwhile. With less than kMinBytes of input both run here and now.
  void run(size_t num_bytes, const ResponseWriterPtr& writer, std::function<void()> work, std::function<void()> then);

 private:
  OffloadPool& pool_;
  boost::asio::io_context& io_;
};

}  // namespace manta::api
