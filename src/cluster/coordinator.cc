#include "cluster/coordinator.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <utility>

#include "base/frame_connection.h"
#include "base/log.h"

namespace manta::cluster {
namespace {

namespace asio = boost::asio;

class CoordinatorServer : public Coordinator {
 public:
  CoordinatorServer(asio::io_context& io, Deadlines deadlines) : timer_(io), roster_(deadlines) {}

  Status listen(asio::io_context& io, const std::string& address) {
    MANTA_ASSIGN(listener_, listen_frames(io, address, [this](FrameConnectionPtr c) { accept(std::move(c)); }));
    tick();
    return {};
  }

  const std::string& address() const override { return listener_->address(); }

 private:
  void accept(FrameConnectionPtr connection) {
    const MemberId id = ++last_id_;
    connections_[id] = {connection, false};
    connection->start([this, id](Frame&& frame) { on_frame(id, std::move(frame)); },
                      [this, id](const Error& e) {
                        connections_.erase(id);
                        roster_.leave(id, e.message);
                        publish();
                      });
  }

  void on_frame(MemberId id, Frame&& frame) {
    Connection& c = connections_.at(id);
    if (!c.joined) return on_join(id, frame);
    if (frame.kind == FrameKind::kHeartbeat) {
      const auto beat = decode_heartbeat(frame.payload);
      if (!beat.ok()) return c.stream->close(beat.error().message);
      roster_.heartbeat(id, *beat, now());
      // A heartbeat of an older epoch means the member missed a change: tell it again, do not let it guess.
      if (frame.epoch != roster_.epoch()) send_membership(c);
      return publish();
    }
    c.stream->close(std::string("unexpected frame: ") + to_string(frame.kind));
  }

  void on_join(MemberId id, const Frame& frame) {
    Connection& c = connections_.at(id);
    const auto join = frame.kind == FrameKind::kJoin ? decode_join(frame.payload)
                                                     : error(ErrorCode::kDataLoss, "the first frame must be a join");
    const Status accepted = join.ok() ? roster_.join(id, *join, now()) : Status(join.error());
    if (!accepted.ok()) {
      spdlog::error("refused: {}", accepted.error().message);
      c.stream->send(FrameKind::kRefuse, roster_.epoch(), encode(Refuse{accepted.error().message}));
      return c.stream->finish("refused");
    }
    c.joined = true;
    publish();
  }

  void publish() {
    if (!roster_.take_changed()) return;
    last_ = roster_.membership();
    for (const auto& departure : last_.departures) {
      const auto level = departure.role == Role::kEngine ? spdlog::level::warn : spdlog::level::debug;
      spdlog::log(level, "{} (epoch {})", departure.why, roster_.epoch().value);
    }
    for (auto& [id, c] : connections_) {
      if (c.joined) send_membership(c);
    }
    last_.departures.clear();
  }

  struct Connection {
    FrameConnectionPtr stream;
    bool joined = false;
  };

  void send_membership(Connection& c) { c.stream->send(FrameKind::kMembership, roster_.epoch(), encode(last_)); }

  void tick() {
    for (const MemberId id : roster_.tick(now())) {
      const auto it = connections_.find(id);
      if (it != connections_.end()) it->second.stream->close("past its deadline");
    }
    publish();
    timer_.expires_after(kHeartbeatPeriod);
    timer_.async_wait([this](boost::system::error_code ec) {
      if (!ec) tick();
    });
  }

  static Time now() { return std::chrono::steady_clock::now(); }

  std::unique_ptr<FrameListener> listener_;
  asio::steady_timer timer_;
  Roster roster_;
  Membership last_;
  std::map<MemberId, Connection> connections_;
  MemberId last_id_ = 0;
};

}  // namespace

Result<std::unique_ptr<Coordinator>> Coordinator::open(asio::io_context& io, const std::string& address,
                                                       Deadlines deadlines) {
  auto server = std::make_unique<CoordinatorServer>(io, deadlines);
  MANTA_TRY(server->listen(io, address));
  return std::unique_ptr<Coordinator>(std::move(server));
}

}  // namespace manta::cluster
