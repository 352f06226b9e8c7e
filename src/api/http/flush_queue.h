// Connections with bytes to send. They are flushed together at the end of the loop's current turn, so that all tokens
// a step gave a connection leave in one write.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <memory>
#include <vector>

namespace manta::api {

class Flushable {
 public:
  virtual ~Flushable() = default;
  virtual void flush() = 0;
};

class FlushQueue {
 public:
  explicit FlushQueue(boost::asio::io_context& io) : io_(io) {}

  void add(std::shared_ptr<Flushable> what) {
    if (waiting_.empty()) boost::asio::post(io_, [this] { flush_all(); });
    waiting_.push_back(std::move(what));
  }

 private:
  void flush_all() {
    flushing_.swap(waiting_);
    for (const auto& what : flushing_) what->flush();
    flushing_.clear();
  }

  boost::asio::io_context& io_;
  std::vector<std::shared_ptr<Flushable>> waiting_, flushing_;
};

}  // namespace manta::api
