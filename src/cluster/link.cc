#include "cluster/link.h"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <utility>

#include "base/frame_connection.h"
#include "base/log.h"
#include "cluster/coordinator.h"

namespace manta::cluster {

namespace asio = boost::asio;

class Link::Core : public std::enable_shared_from_this<Link::Core> {
 public:
  Core(asio::io_context& io, LinkOptions options) : io_(io), timer_(io), options_(std::move(options)) {}

  void start() { connect(); }

  void stop() {
    stopped_ = true;
    timer_.cancel();
    if (stream_) stream_->finish("leaving");  // what was just said still gets out
    stream_ = nullptr;
  }

  void beat() {
    if (!stream_) return;
    stream_->send(FrameKind::kHeartbeat, epoch_, encode(options_.heartbeat()));
  }

  void vote(Epoch epoch, const Vote& vote) {
    if (stream_) stream_->send_now(FrameKind::kVote, epoch, encode(vote));
  }

  Epoch epoch() const { return epoch_; }

 private:
  void connect() {
    connect_frames(io_, options_.coordinator, [self = shared_from_this()](Result<FrameConnectionPtr> connection) {
      if (self->stopped_) return;
      if (!connection.ok()) return self->retry(connection.error().message);
      self->on_connected(*connection);
    });
  }

  void on_connected(FrameConnectionPtr connection) {
    stream_ = std::move(connection);
    complained_ = false;
    answered();
    stream_->start([self = shared_from_this()](Frame&& frame) { self->on_frame(std::move(frame)); },
                   [self = shared_from_this()](const Error& e) {
                     self->stream_ = nullptr;
                     if (!self->stopped_) self->retry(e.message);
                   });
    Join join = options_.join;
    const Heartbeat now = options_.heartbeat();
    join.self.state = now.state;
    join.self.where = now.where;
    join.self.group = now.group;
    join.last_epoch = epoch_.value;
    stream_->send(FrameKind::kJoin, epoch_, encode(join));
    arm_heartbeat();
  }

  void on_frame(Frame&& frame) {
    answered();
    if (frame.kind == FrameKind::kHeartbeat) return;
    if (frame.kind == FrameKind::kMembership) {
      const auto membership = decode_membership(frame.payload);
      if (!membership.ok()) return stream_->close(membership.error().message);
      epoch_ = frame.epoch;
      options_.on_membership(frame.epoch, *membership);
      return;
    }
    if (frame.kind == FrameKind::kDecision && options_.on_decision) {
      const auto decision = decode_decision(frame.payload);
      if (!decision.ok()) return stream_->close(decision.error().message);
      options_.on_decision(frame.epoch, *decision);
      return;
    }
    if (frame.kind == FrameKind::kRefuse) {
      const auto refuse = decode_refuse(frame.payload);
      const std::string reason = refuse.ok() ? refuse->reason : refuse.error().message;
      const auto on_refused = options_.on_refused;
      stop();
      on_refused(reason);
      return;
    }
    stream_->close(std::string("unexpected frame: ") + to_string(frame.kind));
  }

  void arm_heartbeat() {
    timer_.expires_after(kHeartbeatPeriod);
    timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (ec || self->stopped_ || !self->stream_) return;
      self->beat();
      // Counted in heartbeats, so that a process that was stopped itself does not blame the coordinator.
      const auto silent = ++self->num_unanswered_ * kHeartbeatPeriod;
      if (silent > self->options_.deadline) return self->give_up_silent();
      if (silent > self->options_.suspect) self->suspect(true);
      self->arm_heartbeat();
    });
  }

  void answered() {
    num_unanswered_ = 0;
    suspect(false);
  }

  void suspect(bool silent) {
    if (std::exchange(suspected_, silent) != silent && options_.on_suspect) options_.on_suspect(silent);
  }

  void give_up_silent() {
    suspected_ = false;
    const auto on_silence = options_.on_silence;
    stream_->close(fmt::format("it answered no heartbeat for {} ms", options_.deadline.count()));
    if (on_silence) on_silence();
  }

  void retry(const std::string& why) {
    if (!std::exchange(complained_, true)) spdlog::warn("coordinator {}: {}; trying again", options_.coordinator, why);
    timer_.expires_after(std::chrono::milliseconds(50));
    timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (!ec && !self->stopped_) self->connect();
    });
  }

  asio::io_context& io_;
  asio::steady_timer timer_;
  LinkOptions options_;
  FrameConnectionPtr stream_;
  Epoch epoch_;
  int num_unanswered_ = 0;  // heartbeats
  bool suspected_ = false;
  bool stopped_ = false;
  bool complained_ = true;  // the first attempts race with the coordinator's start: say nothing
};

Link::Link(asio::io_context& io, LinkOptions options) : core_(std::make_shared<Core>(io, std::move(options))) {
  core_->start();
}
Link::~Link() {
  core_->stop();
}
void Link::heartbeat_now() {
  core_->beat();
}
void Link::vote(Epoch epoch, const Vote& vote) {
  core_->vote(epoch, vote);
}
Epoch Link::epoch() const {
  return core_->epoch();
}

}  // namespace manta::cluster
