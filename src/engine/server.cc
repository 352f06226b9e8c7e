#include "engine/server.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <optional>
#include <utility>

#include "base/frame_connection.h"
#include "base/log.h"
#include "cluster/link.h"
#include "engine/engine.h"
#include "engine/output_frames.h"

namespace manta::engine {
namespace {

namespace asio = boost::asio;

constexpr std::chrono::seconds kStatsPeriod{10};

class EngineServer : public Server {
 public:
  EngineServer(asio::io_context& io, ServerOptions options)
      : io_(io), stats_timer_(io), load_timer_(io), options_(std::move(options)) {}

  Status listen() {
    MANTA_ASSIGN(listener_,
                 listen_frames(io_, options_.listen, [this](FrameConnectionPtr c) { accept(std::move(c)); }));
    join();
    return {};
  }

  void ready(Engine& engine, Welcome welcome) override {
    engine.join_group({[this](Epoch epoch, const cluster::Vote& vote) {
                         asio::post(io_, [this, epoch, vote] {
                           if (link_) link_->vote(epoch, vote);
                         });
                       },
                       [this] {
                         asio::post(io_, [this] {
                           if (link_) link_->heartbeat_now();
                         });
                       }});
    asio::post(io_, [this, &engine, welcome = std::move(welcome)] {
      engine_ = &engine;
      engine.set_group(group_state());
      welcome_ = welcome;
      link_->heartbeat_now();
      for (auto& [id, front_end] : front_ends_) greet(front_end);
      if (options_.log_stats) log_stats_later(engine.snapshot().load);
      send_load_later();
    });
  }

  void deliver(uint64_t client, Outputs&& outputs) override {
    // Packed on the engine's thread; the io thread only writes.
    for (const Outputs& frame : split_outputs(std::move(outputs))) {
      asio::post(io_, [this, client, payload = encode(frame)] {
        for (auto& [id, stream] : by_client_) {
          if (client == kAllClients || client == id) stream->send(FrameKind::kOutputs, epoch_, payload);
        }
      });
    }
  }

  void drain() override {
    draining_ = true;
    if (link_) link_->heartbeat_now();
    for (auto& [id, f] : front_ends_) f.stream->send(FrameKind::kDrain, epoch_, {});
  }

  void close(std::function<void()> done) override {
    listener_->close();
    engine_ = nullptr;  // it is destroyed as soon as this is done
    stats_timer_.cancel();
    load_timer_.cancel();
    for (auto& [id, f] : front_ends_) f.stream->finish("engine leaves");
    closed_ = std::move(done);
    if (front_ends_.empty()) finish_close();
  }

 private:
  struct FrontEnd {
    FrameConnectionPtr stream;
    std::optional<Hello> hello;
    bool greeted = false;
  };

  void join() {
    cluster::LinkOptions link;
    link.coordinator = options_.coordinator;
    link.join.self.role = cluster::Role::kEngine;
    link.join.self.rank = options_.rank;
    link.join.self.pid = ::getpid();
    link.join.self.host = options_.host;
    link.join.self.address = listener_->address();
    link.join.group_size = options_.group_size;
    link.join.shared_config = options_.shared_config;
    link.heartbeat = [this] { return heartbeat(); };
    link.on_membership = [this](Epoch epoch, const cluster::Membership& m) { on_membership(epoch, m); };
    link.on_decision = [this](Epoch epoch, const cluster::Decision& decision) {
      if (engine_) engine_->set_decision(epoch, decision);
    };
    link.on_refused = options_.on_refused;
    link_ = std::make_unique<cluster::Link>(io_, std::move(link));
  }

  cluster::Heartbeat heartbeat() const {
    cluster::Heartbeat beat;
    beat.state = draining_ ? cluster::State::kDraining : cluster::State::kStarting;
    if (!engine_) {
      beat.where.stage = "loading";
      return beat;
    }
    const Snapshot s = engine_->snapshot();
    if (!draining_ && s.serving) beat.state = cluster::State::kReady;
    // Ranks of a group count their steps together, so that the one that is behind can be told.
    const uint64_t step = s.group.announced ? s.group_step : s.where.step;
    beat.where = {step, s.where.layer, s.where.stage, s.where.counter, s.busy, s.where.waits};
    beat.group = s.group;
    beat.num_running = s.load.num_running;
    beat.num_waiting = s.load.num_waiting;
    return beat;
  }

  void on_membership(Epoch epoch, const cluster::Membership& membership) {
    const bool moved = epoch != epoch_;
    epoch_ = epoch;
    membership_ = membership;
    if (engine_) engine_->set_group(group_state());
    if (!moved) return;
    for (auto& [id, f] : front_ends_) {
      if (f.greeted) f.stream->send(FrameKind::kEpoch, epoch_, {});
    }
  }

  // The group this rank is, or will be, in; who is in it the coordinator says.
  GroupState group_state() const {
    GroupState state;
    ep::EpTopology& topology = state.topology;
    state.epoch = topology.epoch = epoch_;
    state.draining = true;
    for (const auto& member : membership_.members) {
      if (member.role != cluster::Role::kEngine || member.rank >= options_.group_size) continue;
      state.draining &= member.state == cluster::State::kDraining;
      if (std::ranges::find(membership_.group, member.rank) == membership_.group.end()) continue;
      if (member.rank == options_.rank) {
        topology.rank = static_cast<int>(topology.peers.size());
        state.complete = true;
      }
      topology.peers.push_back({member.rank, member.group.address, member.group.host_id});
    }
    topology.size = static_cast<int>(topology.peers.size());
    return state;
  }

  void accept(FrameConnectionPtr stream) {
    const uint64_t id = ++last_id_;
    front_ends_[id].stream = stream;
    stream->start([this, id](Frame&& frame) { on_frame(id, std::move(frame)); },
                  [this, id](const Error& e) { on_close(id, e); });
  }

  void on_close(uint64_t id, const Error& e) {
    const auto it = front_ends_.find(id);
    if (it->second.hello) {
      const uint64_t client = it->second.hello->client;
      spdlog::info("{} left: {}", it->second.hello->process, e.message);
      by_client_.erase(client);
      if (engine_) engine_->client_gone(client);
    }
    front_ends_.erase(it);
    if (closed_ && front_ends_.empty()) finish_close();
  }

  void on_frame(uint64_t id, Frame&& frame) {
    FrontEnd& f = front_ends_.at(id);
    Status status;
    switch (frame.kind) {
      case FrameKind::kHello: status = on_hello(f, frame); break;
      case FrameKind::kSubmit: status = on_submit(f, frame); break;
      case FrameKind::kAbort: status = on_abort(f, frame); break;
      default: status = error(ErrorCode::kDataLoss, std::string("unexpected frame: ") + to_string(frame.kind));
    }
    if (status.ok()) return;
    spdlog::warn("front-end connection: {}", status.error().message);
    f.stream->close(status.error().message);
  }

  Status on_hello(FrontEnd& f, const Frame& frame) {
    MANTA_ASSIGN(Hello hello, decode_hello(frame.payload));
    if (f.hello || by_client_.contains(hello.client)) {
      return error(ErrorCode::kDataLoss, fmt::format("client {:x} said hello twice", hello.client));
    }
    by_client_[hello.client] = f.stream;
    f.hello = std::move(hello);
    greet(f);
    return {};
  }

  void greet(FrontEnd& f) {
    if (!engine_ || !f.hello || f.greeted) return;
    f.greeted = true;
    f.stream->send(FrameKind::kWelcome, epoch_, encode(welcome_));
    f.stream->send(FrameKind::kLoad, epoch_, encode(load_report(engine_->snapshot(), /*with_experts=*/true)));
    if (draining_) f.stream->send(FrameKind::kDrain, epoch_, {});
  }

  Status on_submit(FrontEnd& f, const Frame& frame) {
    MANTA_TRY(expect_greeted(f));
    if (!engine_) return {};  // it leaves, and this connection with it
    MANTA_ASSIGN(Submit submit, decode_submit(frame.payload));
    if (submit.id.client != f.hello->client) {
      return error(ErrorCode::kDataLoss,
                   fmt::format("request {} does not belong to client {:x}", to_string(submit.id), f.hello->client));
    }
    if (frame.epoch != epoch_) {
      f.stream->send(FrameKind::kStale, epoch_, encode(Stale{epoch_.value, {submit.id}}));
      return {};
    }
    engine_->submit(std::move(submit));
    return {};
  }

  Status on_abort(FrontEnd& f, const Frame& frame) {
    MANTA_TRY(expect_greeted(f));
    if (!engine_) return {};
    MANTA_ASSIGN(Abort abort, decode_abort(frame.payload));
    for (const RequestId id : abort.ids) {
      if (id.client != f.hello->client) {
        return error(ErrorCode::kDataLoss, fmt::format("abort of request {}: it does not belong to client {:x}",
                                                       to_string(id), f.hello->client));
      }
    }
    engine_->abort(std::move(abort.ids));  // of whatever epoch: ending work is always right
    return {};
  }

  static Status expect_greeted(const FrontEnd& f) {
    if (f.greeted) return {};
    return error(ErrorCode::kDataLoss, "requests before the welcome");
  }

  static LoadReport load_report(const Snapshot& s, bool with_experts) {
    LoadReport report;
    report.load = s.load;
    report.step = s.where.step;
    report.layer = s.where.layer;
    report.stage = s.where.stage;
    report.busy = s.busy;
    report.step_times.assign(s.step_times.begin(), s.step_times.end());
    if (with_experts && s.experts) report.experts = *s.experts;
    return report;
  }

  // Front-ends without requests here hear of its load too, and all of them while a step stands still.
  void send_load_later() {
    load_timer_.expires_after(kLoadPeriod);
    load_timer_.async_wait([this](boost::system::error_code ec) {
      if (ec || !engine_) return;
      const Snapshot now = engine_->snapshot();
      const bool new_experts = now.experts != told_.experts;
      if (new_experts || now.busy != told_.busy || now.where.counter != told_.where.counter ||
          now.load.num_steps != told_.load.num_steps || now.load.num_waiting != told_.load.num_waiting) {
        const std::string payload = encode(load_report(now, new_experts));
        for (auto& [client, stream] : by_client_) stream->send(FrameKind::kLoad, epoch_, payload);
        told_ = now;
      }
      send_load_later();
    });
  }

  void log_stats_later(const Load& before) {
    stats_timer_.expires_after(kStatsPeriod);
    stats_timer_.async_wait([this, before](boost::system::error_code ec) {
      if (ec || !engine_) return;
      const Load now = engine_->snapshot().load;
      if (now.num_steps != before.num_steps) log_stats(before, now);
      log_stats_later(now);
    });
  }

  static void log_stats(const Load& before, const Load& now) {
    const double s = std::chrono::duration<double>(kStatsPeriod).count();
    const auto rate = [s](uint64_t from, uint64_t to) { return static_cast<double>(to - from) / s; };
    const auto share = [](double part, double whole) { return whole > 0 ? 100 * part / whole : 0.0; };
    const auto hits = static_cast<double>(now.prefix_cache_hits - before.prefix_cache_hits);
    const auto queries = static_cast<double>(now.prefix_cache_queries - before.prefix_cache_queries);
    spdlog::info(
        "prompt {:.1f} tok/s, generation {:.1f} tok/s, running {}, waiting {}, KV cache {:.1f} %, prefix hits "
        "{:.1f} %, {} steps",
        rate(before.num_prompt_tokens, now.num_prompt_tokens),
        rate(before.num_generation_tokens, now.num_generation_tokens), now.num_running, now.num_waiting,
        share(now.num_blocks - now.num_free_blocks, now.num_blocks), share(hits, queries),
        now.num_steps - before.num_steps);
  }

  // Connections that finish end in later turns of the loop; the last one closes the door.
  void finish_close() {
    link_ = nullptr;
    asio::post(io_, std::exchange(closed_, nullptr));
  }

  asio::io_context& io_;
  asio::steady_timer stats_timer_;
  asio::steady_timer load_timer_;
  ServerOptions options_;
  std::unique_ptr<FrameListener> listener_;
  std::unique_ptr<cluster::Link> link_;
  std::map<uint64_t, FrontEnd> front_ends_;           // by connection
  std::map<uint64_t, FrameConnectionPtr> by_client_;  // those that said hello
  uint64_t last_id_ = 0;
  Engine* engine_ = nullptr;
  Snapshot told_;  // to all front-ends
  Welcome welcome_;
  Epoch epoch_;
  cluster::Membership membership_;
  bool draining_ = false;
  std::function<void()> closed_;
};

}  // namespace

Result<std::unique_ptr<Server>> Server::open(asio::io_context& io, ServerOptions options) {
  auto server = std::make_unique<EngineServer>(io, std::move(options));
  MANTA_TRY(server->listen());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace manta::engine
