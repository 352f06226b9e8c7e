#include "engine/client.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <random>
#include <unordered_map>
#include <utility>

#include "base/frame_connection.h"
#include "base/log.h"
#include "cluster/link.h"
#include "engine/engine_load.h"

namespace manta::engine {

namespace asio = boost::asio;

namespace {

// How long a request whose engine died may wait for another one before its client is told.
constexpr std::chrono::milliseconds kOrphanPatience{1500};
// Of a request's frame. The rest is for the tokens that it carries with it when it is sent again.
constexpr size_t kMaxSubmitBytes = kMaxPayloadBytes - (4u << 20);
// A connection that was lost to an engine which the coordinator still has: how soon it is tried again.
constexpr std::chrono::milliseconds kReconnectPeriod{250};

// A connection to one engine. Requests are in `requests` of the core; this counts them.
struct Peer {
  cluster::Member member;
  FrameConnectionPtr stream;
  std::optional<Welcome> welcome;
  Epoch epoch;  // what submits must carry
  bool draining = false;
  bool put_out = false;  // the coordinator said that it left
  bool again = false;    // not the first connection to this engine
  EngineLoad load;
  uint64_t step = 0;
  int layer = -1;
  std::string stage = "idle";
  bool busy = false;
  std::shared_ptr<const ExpertReport> experts;
  StepTimes step_times{};

  bool takes_requests() const { return welcome.has_value() && !draining && member.state == cluster::State::kReady; }
};
using PeerPtr = std::shared_ptr<Peer>;

struct InFlight {
  Submit submit;  // tokens grow with what came back, so that it can be sent again as it stands
  EngineClient::OnOutput on_output;
  PeerPtr peer;        // null: its engine died, it waits for another
  bool seen = false;   // its engine has answered
  int lost_rank = -1;  // of the engine that died with it, until another has it
  ResubmitReason lost_why = ResubmitReason::kConnectionLost;
  size_t num_prompt_rows = 0;    // prompt logprobs delivered so far
  size_t num_repeated_rows = 0;  // of those, what a second engine will send again
  std::chrono::steady_clock::time_point orphaned_at;
};

RequestOutput failure(RequestId id, ErrorCode code, std::string message) {
  RequestOutput out;
  out.id = id;
  out.finish = FinishReason::kError;
  out.error_code = code;
  out.error_message = std::move(message);
  return out;
}

uint64_t draw_client_id() {
  std::random_device random;
  return (static_cast<uint64_t>(random()) << 32 | random()) | 1;
}

}  // namespace

class EngineClient::Core : public std::enable_shared_from_this<EngineClient::Core> {
 public:
  Core(asio::io_context& io, ClientOptions options)
      : io_(io), orphan_timer_(io), reconnect_timer_(io), options_(std::move(options)), client_id_(draw_client_id()) {}

  void start(std::function<void()> on_change) {
    on_change_ = std::move(on_change);
    cluster::LinkOptions link;
    link.coordinator = options_.coordinator;
    link.join.self.role = cluster::Role::kApi;
    link.join.self.rank = options_.ranks.first;
    link.join.self.pid = ::getpid();
    link.join.self.host = options_.host;
    link.join.self.address = options_.address;
    link.heartbeat = [this] {
      cluster::Heartbeat beat;
      beat.state = cluster::State::kReady;
      beat.num_running = static_cast<int32_t>(requests_.size());
      return beat;
    };
    link.on_membership = [this](Epoch, const cluster::Membership& m) { on_membership(m); };
    link.on_refused = [](const std::string& reason) { spdlog::error("coordinator refused: {}", reason); };
    link_ = std::make_unique<cluster::Link>(io_, std::move(link));
  }

  void stop() {
    stopped_ = true;
    link_ = nullptr;
    orphan_timer_.cancel();
    reconnect_timer_.cancel();
    requests_.clear();
    for (auto& [rank, peer] : peers_) {
      if (peer->stream) peer->stream->close("leaving");  // the engine aborts what this connection submitted
      peer->stream = nullptr;  // its handlers hold the peer, and no loop may be there any more to let go of them
    }
    peers_.clear();
  }

  Result<RequestId> submit(Submit submit, OnOutput on_output, std::optional<int> rank) {
    MANTA_ASSIGN(PeerPtr peer, pick(rank, static_cast<int64_t>(submit.tokens.size())));
    submit.id = {client_id_, ++last_serial_};
    const RequestId id = submit.id;
    const std::string payload = encode(submit);
    if (payload.size() > kMaxSubmitBytes) {
      return error(ErrorCode::kInvalidArgument,
                   fmt::format("the request takes {} bytes on its way to an engine, at most {}: shorten its lists",
                               payload.size(), kMaxSubmitBytes));
    }
    InFlight request;
    request.submit = std::move(submit);
    request.on_output = std::move(on_output);
    InFlight& stored = requests_.emplace(id, std::move(request)).first->second;
    send(stored, peer, payload);
    return id;
  }

  void abort(RequestId id) {
    const auto it = requests_.find(id);
    if (it == requests_.end()) return;
    const PeerPtr peer = it->second.peer;
    forget(it);
    if (peer && peer->stream) peer->stream->send(FrameKind::kAbort, peer->epoch, encode(Abort{{id}}));
  }

  std::optional<Welcome> model() const { return model_; }

  bool ready() const {
    return std::any_of(peers_.begin(), peers_.end(), [](const auto& p) { return p.second->takes_requests(); });
  }

  std::vector<EngineView> engines() const {
    std::vector<EngineView> views;
    for (const auto& [rank, peer] : peers_) {
      EngineView v;
      v.rank = rank;
      v.role = peer->welcome ? peer->welcome->role : "";
      v.pid = peer->member.pid;
      v.host = peer->member.host;
      v.state = peer->draining ? "draining" : peer->welcome ? cluster::to_string(peer->member.state) : "starting";
      v.epoch = peer->epoch.value;
      v.num_in_flight = peer->load.num_in_flight();
      v.num_tokens_in_flight = peer->load.num_tokens_in_flight();
      v.load = peer->load.last_heard();
      v.step = peer->step;
      v.layer = peer->layer;
      v.stage = peer->stage;
      v.busy = peer->busy;
      v.experts = peer->experts;
      v.step_times = peer->step_times;
      if (peer->welcome) v.kv_transfer = peer->welcome->kv_transfer;
      views.push_back(std::move(v));
    }
    return views;
  }

  size_t num_in_flight() const { return requests_.size(); }

  std::optional<int> rank_of(RequestId id) const {
    const auto it = requests_.find(id);
    if (it == requests_.end() || !it->second.peer) return std::nullopt;
    return it->second.peer->member.rank;
  }

  void on_resubmit(std::function<void(int, ResubmitReason)> told) { on_resubmit_ = std::move(told); }

 private:
  using Requests = std::unordered_map<RequestId, InFlight>;

  // ---- choosing ----

  Result<PeerPtr> pick(std::optional<int> local_rank, int64_t num_tokens) {
    if (!local_rank.has_value()) {
      if (const PeerPtr best = pick_least_loaded(num_tokens)) return best;
      return error(ErrorCode::kUnavailable,
                   fmt::format("no engine takes requests now ({} known); retry in a moment", peers_.size()));
    }
    if (*local_rank < 0 || *local_rank >= options_.ranks.count) {
      return error(ErrorCode::kInvalidArgument, fmt::format("data parallel rank {}: this server has ranks 0 to {}",
                                                            *local_rank, options_.ranks.count - 1));
    }
    const auto it = peers_.find(options_.ranks.first + *local_rank);
    if (it != peers_.end() && it->second->takes_requests()) return it->second;
    return error(ErrorCode::kUnavailable,
                 fmt::format("engine rank {} does not take requests now", options_.ranks.first + *local_rank));
  }

  // Ties rotate: a burst finds all engines equal.
  PeerPtr pick_least_loaded(int64_t num_tokens) {
    PeerPtr best;
    EngineLoad::Cost least;
    const size_t n = peers_.size();
    auto it = peers_.begin();
    if (n > 0) std::advance(it, static_cast<long>(next_first_++ % n));
    for (size_t i = 0; i < n; ++i) {
      const PeerPtr& peer = it->second;
      const EngineLoad::Cost cost = peer->load.cost(num_tokens);
      if (peer->takes_requests() && (!best || cost < least)) {
        best = peer;
        least = cost;
      }
      if (++it == peers_.end()) it = peers_.begin();
    }
    return best;
  }

  static int64_t num_tokens(const InFlight& request) { return static_cast<int64_t>(request.submit.tokens.size()); }

  void send(InFlight& request, const PeerPtr& peer, std::string_view payload) {
    request.peer = peer;
    request.seen = false;
    peer->load.sent(num_tokens(request));
    peer->stream->send(FrameKind::kSubmit, peer->epoch, payload);
    if (request.lost_rank < 0) return;
    if (on_resubmit_) on_resubmit_(request.lost_rank, request.lost_why);
    request.lost_rank = -1;
  }

  void see(InFlight& request) {
    if (request.peer && !std::exchange(request.seen, true)) request.peer->load.seen(num_tokens(request));
  }

  void detach(InFlight& request) {
    if (!request.peer) return;
    see(request);
    request.peer->load.ended(num_tokens(request));
    request.peer = nullptr;
  }

  void forget(Requests::iterator it) {
    detach(it->second);
    requests_.erase(it);
  }

  void fail(Requests::iterator it, ErrorCode code, std::string message) {
    OnOutput on_output = std::move(it->second.on_output);
    const RequestId id = it->first;
    forget(it);
    on_output(failure(id, code, std::move(message)));
  }

  // ---- engines come and go ----

  void on_membership(const cluster::Membership& membership) {
    for (const auto& departure : membership.departures) {
      if (departure.role != cluster::Role::kEngine) continue;
      const auto it = peers_.find(departure.rank);
      // A connection may outlive its engine's membership (a stopped process holds its sockets open).
      if (it != peers_.end() && it->second->member.pid == departure.pid && it->second->stream) {
        it->second->put_out = true;
        it->second->stream->close(departure.why);
      }
    }
    engines_.clear();
    for (const auto& member : membership.members) {
      if (member.role == cluster::Role::kEngine && options_.ranks.contains(member.rank)) engines_.push_back(member);
    }
    for (const auto& member : engines_) on_member(member);
    on_change_();
  }

  void reconnect() {
    reconnect_timer_.expires_after(kReconnectPeriod);
    reconnect_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (ec || self->stopped_) return;
      for (const auto& member : self->engines_) {
        if (!self->peers_.contains(member.rank)) self->on_member(member, /*again=*/true);
      }
    });
  }

  void on_member(const cluster::Member& member, bool again = false) {
    const auto it = peers_.find(member.rank);
    if (it != peers_.end() && it->second->member.pid == member.pid && it->second->member.address == member.address) {
      it->second->member = member;
      return;
    }
    if (it != peers_.end() && it->second->stream) it->second->stream->close("replaced by another process");
    auto peer = std::make_shared<Peer>();
    peer->member = member;
    peer->again = again;
    peers_[member.rank] = peer;
    connect(peer);
  }

  void connect(const PeerPtr& peer) {
    connect_frames(io_, peer->member.address, [self = shared_from_this(), peer](Result<FrameConnectionPtr> stream) {
      if (self->stopped_) return;
      if (!stream.ok()) return self->lose(peer, stream.error().message);
      peer->stream = *stream;
      peer->stream->start([self, peer](Frame&& frame) { self->on_frame(peer, std::move(frame)); },
                          [self, peer](const Error& e) { self->lose(peer, e.message); });
      peer->stream->send(FrameKind::kHello, Epoch{}, encode(Hello{self->client_id_, self->options_.process}));
    });
  }

  // The engine is gone: its requests go elsewhere, or wait for one that comes.
  void lose(const PeerPtr& peer, const std::string& why) {
    const bool was_there = peer->welcome.has_value();
    peer->stream = nullptr;
    peer->welcome.reset();
    const auto it = peers_.find(peer->member.rank);
    if (it != peers_.end() && it->second == peer) peers_.erase(it);
    if (stopped_) return;
    if (was_there || !peer->again) {
      spdlog::warn("lost engine rank {} (pid {}) with {} requests: {}", peer->member.rank, peer->member.pid,
                   peer->load.num_in_flight(), why);
    }
    reconnect();
    const auto now = std::chrono::steady_clock::now();
    for (auto& [id, request] : requests_) {
      if (request.peer != peer) continue;
      detach(request);
      request.lost_rank = peer->member.rank;
      request.lost_why = peer->put_out ? ResubmitReason::kPutOut : ResubmitReason::kConnectionLost;
      request.orphaned_at = now;
      request.num_repeated_rows = request.num_prompt_rows;
    }
    place_orphans();
    on_change_();
  }

  void place_orphans() {
    const auto now = std::chrono::steady_clock::now();
    std::vector<RequestId> expired;
    bool any_left = false;
    for (auto& [id, request] : requests_) {
      if (request.peer) continue;
      if (const PeerPtr peer = pick_least_loaded(num_tokens(request))) {
        send(request, peer, encode(request.submit));
      } else if (now - request.orphaned_at >= kOrphanPatience) {
        expired.push_back(id);
      } else {
        any_left = true;
      }
    }
    for (const RequestId id : expired) {
      const auto it = requests_.find(id);
      if (it != requests_.end()) {
        fail(it, ErrorCode::kUnavailable, "the engine of this request died and no other came in time; send it again");
      }
    }
    if (!any_left) return;
    orphan_timer_.expires_after(std::chrono::milliseconds(50));
    orphan_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (!ec && !self->stopped_) self->place_orphans();
    });
  }

  // ---- frames ----

  void on_frame(const PeerPtr& peer, Frame&& frame) {
    Status status;
    switch (frame.kind) {
      case FrameKind::kWelcome: status = on_welcome(*peer, frame); break;
      case FrameKind::kEpoch: peer->epoch = frame.epoch; break;
      case FrameKind::kDrain:
        peer->draining = true;
        on_change_();
        break;
      case FrameKind::kStale: status = on_stale(peer, frame); break;
      case FrameKind::kOutputs: status = on_outputs(*peer, frame); break;
      case FrameKind::kLoad: status = on_load(*peer, frame); break;
      default: status = error(ErrorCode::kDataLoss, std::string("unexpected frame: ") + to_string(frame.kind));
    }
    if (!status.ok() && peer->stream) peer->stream->close(status.error().message);
  }

  Status on_welcome(Peer& peer, const Frame& frame) {
    MANTA_ASSIGN(peer.welcome, decode_welcome(frame.payload));
    peer.epoch = frame.epoch;
    peer.load.welcomed(*peer.welcome);
    model_ = peer.welcome;
    place_orphans();
    on_change_();
    return {};
  }

  Status on_stale(const PeerPtr& peer, const Frame& frame) {
    MANTA_ASSIGN(const Stale stale, decode_stale(frame.payload));
    peer->epoch = Epoch{stale.current};
    for (const RequestId id : stale.ids) {
      const auto it = requests_.find(id);
      if (it == requests_.end() || it->second.peer != peer) continue;
      peer->stream->send(FrameKind::kSubmit, peer->epoch, encode(it->second.submit));
    }
    return {};
  }

  Status on_outputs(Peer& peer, const Frame& frame) {
    MANTA_ASSIGN(Outputs outputs, decode_outputs(frame.payload));
    // After the outputs, so that what has ended frees its tokens first; `peer` lives on in the connection's handler.
    for (RequestOutput& out : outputs.requests) {
      out.rank = peer.member.rank;
      deliver(std::move(out));
    }
    peer.load.heard(outputs.load);
    return {};
  }

  Status on_load(Peer& peer, const Frame& frame) {
    MANTA_ASSIGN(LoadReport report, decode_load_report(frame.payload));
    peer.load.heard(report.load);
    peer.step = report.step;
    peer.layer = report.layer;
    peer.stage = std::move(report.stage);
    peer.busy = report.busy;
    std::copy(report.step_times.begin(), report.step_times.end(), peer.step_times.begin());
    if (report.experts.num_layers > 0) {
      peer.experts = std::make_shared<const ExpertReport>(std::move(report.experts));
    }
    return {};
  }

  void deliver(RequestOutput&& out) {
    const auto it = requests_.find(out.id);
    if (it == requests_.end()) return;  // aborted meanwhile
    InFlight& request = it->second;
    see(request);
    request.submit.tokens.insert(request.submit.tokens.end(), out.tokens.begin(), out.tokens.end());
    if (request.peer) request.peer->load.grew(static_cast<int64_t>(out.tokens.size()));
    drop_repeated_rows(request, out);
    // Moved out for the call, which may abort this very request, and put back if it lives on.
    OnOutput on_output = std::move(request.on_output);
    const RequestId id = out.id;
    const bool last = out.finish != FinishReason::kNone;
    if (last) forget(it);
    on_output(std::move(out));
    if (last) return;
    const auto again = requests_.find(id);
    if (again != requests_.end()) again->second.on_output = std::move(on_output);
  }

  // Prompt logprobs are delivered once, also when a second engine computes them again.
  static void drop_repeated_rows(InFlight& request, RequestOutput& out) {
    const size_t repeated = std::min(request.num_repeated_rows, out.prompt_logprobs.size());
    out.prompt_logprobs.erase(out.prompt_logprobs.begin(), out.prompt_logprobs.begin() + static_cast<long>(repeated));
    request.num_repeated_rows -= repeated;
    request.num_prompt_rows += out.prompt_logprobs.size();
    if (!out.tokens.empty()) request.submit.sampling.num_prompt_logprobs = -1;  // complete before the first token
  }

  asio::io_context& io_;
  asio::steady_timer orphan_timer_, reconnect_timer_;
  ClientOptions options_;
  uint64_t client_id_;
  uint64_t last_serial_ = 0;
  size_t next_first_ = 0;
  bool stopped_ = false;
  std::function<void()> on_change_;
  std::unique_ptr<cluster::Link> link_;
  std::vector<cluster::Member> engines_;  // that the coordinator last spoke of
  std::map<int, PeerPtr> peers_;          // by rank
  std::optional<Welcome> model_;
  Requests requests_;
  std::function<void(int, ResubmitReason)> on_resubmit_;
};

const char* to_string(ResubmitReason reason) {
  switch (reason) {
    case ResubmitReason::kConnectionLost: return "connection_lost";
    case ResubmitReason::kPutOut: return "put_out";
  }
  return "unknown";
}

EngineClient::EngineClient(asio::io_context& io, ClientOptions options)
    : core_(std::make_shared<Core>(io, std::move(options))) {}
EngineClient::~EngineClient() {
  core_->stop();
}
void EngineClient::start(std::function<void()> on_change) {
  core_->start(std::move(on_change));
}
Result<RequestId> EngineClient::submit(Submit submit, OnOutput on_output, std::optional<int> data_parallel_rank) {
  return core_->submit(std::move(submit), std::move(on_output), data_parallel_rank);
}
void EngineClient::abort(RequestId id) {
  core_->abort(id);
}
std::optional<Welcome> EngineClient::model() const {
  return core_->model();
}
bool EngineClient::ready() const {
  return core_->ready();
}
std::vector<EngineView> EngineClient::engines() const {
  return core_->engines();
}
size_t EngineClient::num_in_flight() const {
  return core_->num_in_flight();
}
std::optional<int> EngineClient::rank_of(RequestId id) const {
  return core_->rank_of(id);
}
void EngineClient::on_resubmit(std::function<void(int, ResubmitReason)> told) {
  core_->on_resubmit(std::move(told));
}

}  // namespace manta::engine
