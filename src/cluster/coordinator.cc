#include "cluster/coordinator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <utility>

#include "base/frame_connection.h"
#include "base/log.h"
#include "cluster/agreement.h"

namespace manta::cluster {
namespace {

namespace asio = boost::asio;

class CoordinatorServer : public Coordinator {
 public:
  CoordinatorServer(asio::io_context& io, CoordinatorOptions options)
      : timer_(io), options_(std::move(options)), roster_(options_.deadlines, options_.shared_config) {}

  Status listen(asio::io_context& io, const std::string& address) {
    MANTA_ASSIGN(listener_, listen_frames(io, address, [this](FrameConnectionPtr c) { accept(std::move(c)); }));
    tick();
    return {};
  }

  const std::string& address() const override { return listener_->address(); }

 private:
  struct Connection {
    FrameConnectionPtr stream;
    bool joined = false;
  };

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
    if (frame.kind == FrameKind::kVote) return on_vote(id, c, frame);
    if (frame.kind == FrameKind::kHeartbeat) {
      const auto beat = decode_heartbeat(frame.payload);
      if (!beat.ok()) return c.stream->close(beat.error().message);
      roster_.heartbeat(id, *beat, now());
      c.stream->send(FrameKind::kHeartbeat, roster_.epoch(), {});  // so that it knows us alive
      // A heartbeat of an older epoch means the member missed a change: tell it again, do not let it guess.
      if (frame.epoch != roster_.epoch()) send_membership(c);
      return publish();
    }
    c.stream->close(std::string("unexpected frame: ") + to_string(frame.kind));
  }

  void on_vote(MemberId id, Connection& c, const Frame& frame) {
    const auto vote = decode_vote(frame.payload);
    if (!vote.ok()) return c.stream->close(vote.error().message);
    const auto outcome = agreement_.vote(place_of(roster_.rank_of(id)), frame.epoch, *vote);
    if (!outcome.ok()) return c.stream->close(outcome.error().message);
    if (*outcome == Agreement::Outcome::kStale) send_membership(c);
    if (*outcome == Agreement::Outcome::kDecided) send_decision();
  }

  void send_decision() {
    std::string payloads[2];  // by whether the rank's work is counted
    for (size_t place = 0; place < voters_.size(); ++place) {
      const Decision decision = agreement_.decision_for(static_cast<int>(place));
      std::string& payload = payloads[decision.counted];
      if (payload.empty()) payload = encode(decision);
      voters_[place]->send_now(FrameKind::kDecision, roster_.epoch(), payload);
    }
  }

  // Follows the roster: its group votes, at the roster's epoch.
  void follow_roster() {
    const auto& group = roster_.group();
    if (group.empty()) return agreement_.dissolve();
    if (agreement_.formed() && agreement_.epoch() == roster_.epoch()) return;
    agreement_.reset(roster_.epoch(), static_cast<int>(group.size()));
    voters_.assign(group.size(), nullptr);
    for (const auto& [id, c] : connections_) {
      if (const int place = place_of(roster_.rank_of(id)); place >= 0) voters_[place] = c.stream;
    }
    if (static_cast<int>(group.size()) == options_.group_size) {
      spdlog::info("all {} ranks are there: the group is at epoch {}", options_.group_size, roster_.epoch().value);
    } else {
      spdlog::warn("the group goes on at epoch {} with {} of {} ranks: {}", roster_.epoch().value, group.size(),
                   options_.group_size, fmt::join(group, ", "));
    }
  }

  int place_of(int rank) const {
    const auto& group = roster_.group();
    const auto it = std::find(group.begin(), group.end(), rank);
    return it == group.end() ? -1 : static_cast<int>(it - group.begin());
  }

  std::vector<int> owing_ranks() const {
    std::vector<int> ranks = agreement_.owing();
    for (int& rank : ranks) rank = roster_.group()[rank];
    return ranks;
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
    if (join->self.role == Role::kEngine && join->group_size > 0) options_.group_size = join->group_size;
    publish();
  }

  void publish() {
    if (options_.group_size > 0) roster_.settle_group(options_.group_size, now());
    if (!roster_.take_changed()) return;
    follow_roster();
    last_ = roster_.membership();
    for (const auto& departure : last_.departures) {
      const bool worth_a_line = departure.role == Role::kEngine || departure.put_out;
      const auto level = worth_a_line ? spdlog::level::warn : spdlog::level::debug;
      spdlog::log(level, "{} (epoch {})", departure.why, roster_.epoch().value);
    }
    for (auto& [id, c] : connections_) {
      if (c.joined) send_membership(c);
    }
    last_.departures.clear();
  }

  void send_membership(Connection& c) { c.stream->send(FrameKind::kMembership, roster_.epoch(), encode(last_)); }

  void tick() {
    for (const MemberId id : roster_.tick(now(), owing_ranks())) {
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
  CoordinatorOptions options_;
  Roster roster_;
  Agreement agreement_;
  std::vector<FrameConnectionPtr> voters_;  // of the group, by place
  Membership last_;
  std::map<MemberId, Connection> connections_;
  MemberId last_id_ = 0;
};

}  // namespace

Result<std::unique_ptr<Coordinator>> Coordinator::open(asio::io_context& io, const std::string& address,
                                                       CoordinatorOptions options) {
  auto server = std::make_unique<CoordinatorServer>(io, std::move(options));
  MANTA_TRY(server->listen(io, address));
  return std::unique_ptr<Coordinator>(std::move(server));
}

}  // namespace manta::cluster
