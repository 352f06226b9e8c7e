// A line to one event loop of an api process: connects and reconnects, hears of its ranks, carries many requests.
// Used on one io_context's thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "api/relay/messages.h"
#include "base/result.h"

namespace manta::router {

// One request's ear at a link. Lives until the end, on_lost() or cancel().
class StreamSink {
 public:
  virtual ~StreamSink() = default;
  virtual void on_piece(const api::Piece& piece) = 0;  // nothing comes after piece.end
  virtual void on_lost(const std::string& why) = 0;    // the api is gone; nothing comes after it
};

class Link {
 public:
  // on_change: connected, lost, or other views than before.
  Link(boost::asio::io_context& io, std::string address, std::string process, std::function<void()> on_change);
  ~Link();  // sinks hear nothing any more
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  const std::string& address() const;
  void reset(const std::string& why);  // the peer is known to be gone, whatever its sockets say
  bool connected() const;              // and its views are known
  const api::RankViews& views() const;
  size_t num_streams() const;

  // Sends the request; its stream number is drawn here. sink outlives the stream.
  api::StreamId open(api::RelayRequest request, StreamSink& sink);
  void cancel(api::StreamId stream);

 private:
  class Core;
  std::shared_ptr<Core> core_;
};

}  // namespace manta::router
