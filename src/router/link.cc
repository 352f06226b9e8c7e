#include "router/link.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <unordered_map>
#include <utility>

#include "base/frame_connection.h"
#include "base/log.h"

namespace manta::router {

namespace asio = boost::asio;
using api::StreamId;

namespace {

constexpr std::chrono::milliseconds kFirstRetry{20}, kLastRetry{500};

}  // namespace

class Link::Core : public std::enable_shared_from_this<Link::Core> {
 public:
  Core(asio::io_context& io, std::string address, std::string process, std::function<void()> on_change)
      : io_(io),
        retry_(io),
        address_(std::move(address)),
        process_(std::move(process)),
        on_change_(std::move(on_change)) {}

  void connect() {
    connect_frames(io_, address_, [self = shared_from_this()](Result<FrameConnectionPtr> connection) {
      if (self->stopped_) return;
      if (!connection.ok()) return self->retry();
      self->connection_ = *connection;
      self->connection_->start([self](Frame&& frame) { self->on_frame(frame); },
                               [self](const Error& why) { self->lose(why.message); });
      self->connection_->send(FrameKind::kHello, Epoch{}, encode(api::RelayHello{self->process_}));
    });
  }

  void stop() {
    stopped_ = true;
    retry_.cancel();
    sinks_.clear();
    if (connection_) connection_->close("leaving");
  }

  StreamId open(api::RelayRequest request, StreamSink& sink) {
    const StreamId stream = request.stream = ++last_stream_;
    sinks_.emplace(stream, &sink);
    std::string rest;
    if (request.body.size() > api::kMaxPartBytes) {
      rest = request.body.substr(api::kMaxPartBytes);
      request.body.resize(api::kMaxPartBytes);
      request.more = true;
    }
    connection_->send(FrameKind::kRequest, Epoch{}, encode(request));
    for (size_t at = 0; at < rest.size(); at += api::kMaxPartBytes) {
      const bool more = at + api::kMaxPartBytes < rest.size();
      connection_->send(FrameKind::kBody, Epoch{},
                        encode(api::RelayBody{stream, more, rest.substr(at, api::kMaxPartBytes)}));
    }
    return stream;
  }

  void cancel(StreamId stream) {
    if (sinks_.erase(stream) == 0 || !connection_) return;
    connection_->send(FrameKind::kCancel, Epoch{}, encode(api::RelayCancel{stream}));
  }

  void reset(const std::string& why) {
    if (connection_) connection_->close(why);
  }

  const std::string& address() const { return address_; }
  bool connected() const { return connection_ && has_views_; }
  const api::RankViews& views() const { return views_; }
  size_t num_streams() const { return sinks_.size(); }

 private:
  void on_frame(const Frame& frame) {
    Status status;
    switch (frame.kind) {
      case FrameKind::kPieces:
        status = api::decode_pieces(frame.payload, [this](const api::Piece& piece) { on_piece(piece); });
        break;
      case FrameKind::kRankViews: status = on_views(frame); break;
      default: status = error(ErrorCode::kDataLoss, std::string("unexpected frame: ") + to_string(frame.kind));
    }
    if (!status.ok() && connection_) connection_->close(status.error().message);
  }

  void on_piece(const api::Piece& piece) {
    const auto it = sinks_.find(piece.stream);
    if (it == sinks_.end()) return;  // cancelled meanwhile
    StreamSink* sink = it->second;
    if (piece.end) sinks_.erase(it);
    sink->on_piece(piece);
  }

  Status on_views(const Frame& frame) {
    MANTA_ASSIGN(views_, api::decode_rank_views(frame.payload));
    has_views_ = true;
    delay_ = kFirstRetry;
    on_change_();
    return {};
  }

  void lose(const std::string& why) {
    connection_ = nullptr;
    has_views_ = false;
    if (stopped_) return;
    if (!sinks_.empty()) spdlog::warn("lost api {} with {} requests: {}", address_, sinks_.size(), why);
    // A sink that is told may open a stream elsewhere, or destroy others.
    while (!sinks_.empty()) {
      StreamSink* sink = sinks_.begin()->second;
      sinks_.erase(sinks_.begin());
      sink->on_lost(why);
    }
    if (!stopped_) on_change_();
    if (!stopped_) retry();
  }

  void retry() {
    retry_.expires_after(delay_);
    delay_ = std::min(delay_ * 2, kLastRetry);
    retry_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (!ec && !self->stopped_) self->connect();
    });
  }

  asio::io_context& io_;
  asio::steady_timer retry_;
  std::chrono::milliseconds delay_ = kFirstRetry;
  const std::string address_, process_;
  std::function<void()> on_change_;
  FrameConnectionPtr connection_;  // null while there is none
  api::RankViews views_;
  bool has_views_ = false;  // of this connection
  std::unordered_map<StreamId, StreamSink*> sinks_;
  StreamId last_stream_ = 0;
  bool stopped_ = false;
};

Link::Link(asio::io_context& io, std::string address, std::string process, std::function<void()> on_change)
    : core_(std::make_shared<Core>(io, std::move(address), std::move(process), std::move(on_change))) {
  core_->connect();
}
Link::~Link() {
  core_->stop();
}
void Link::reset(const std::string& why) {
  core_->reset(why);
}
const std::string& Link::address() const {
  return core_->address();
}
bool Link::connected() const {
  return core_->connected();
}
const api::RankViews& Link::views() const {
  return core_->views();
}
size_t Link::num_streams() const {
  return core_->num_streams();
}
StreamId Link::open(api::RelayRequest request, StreamSink& sink) {
  return core_->open(std::move(request), sink);
}
void Link::cancel(StreamId stream) {
  core_->cancel(stream);
}

}  // namespace manta::router
