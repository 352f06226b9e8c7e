#include "transfer/exchange.h"

#include <fmt/format.h>

#include <boost/asio.hpp>
#include <map>
#include <set>
#include <thread>

#include "base/frame_connection.h"
#include "base/log.h"
#include "base/pack.h"
#include "transfer/mover_thread.h"

namespace manta::transfer {

static constexpr OfferNote::Kind last_value(OfferNote::Kind) {
  return OfferNote::Kind::kRestarted;
}
static auto fields(OfferNote& n) {
  return std::tie(n.kind, n.key);
}
std::string encode(const OfferNote& note) {
  return pack_message(note);
}

namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

constexpr auto kTick = std::chrono::milliseconds(100);  // of leases and heartbeats, while there are any
constexpr auto kConnectDeadline = std::chrono::seconds(5);

class RunningExchange : public Exchange {
 public:
  RunningExchange(ExchangeOptions options, std::unique_ptr<BlockMover> mover)
      : options_(std::move(options)),
        work_(io_.get_executor()),
        tick_(io_),
        leases_(options_.lease),
        pulls_(options_.block_size),
        mover_(std::move(mover)),
        mover_thread_(*mover_, [this](uint64_t id, const Status& status, size_t n) { on_read(id, status, n); }) {}

  ~RunningExchange() override {
    work_.reset();
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

  Status listen() {
    auto listener = listen_frames(io_, fmt::format("tcp:{}:{}", options_.host, options_.port),
                                  [this](FrameConnectionPtr stream) { accept(std::move(stream)); });
    if (!listener.ok()) {
      return error(listener.error().code,
                   fmt::format("KV side channel: {}; VLLM_NIXL_SIDE_CHANNEL_HOST must be an address of this host, "
                               "VLLM_NIXL_SIDE_CHANNEL_PORT plus the rank a free port",
                               listener.error().message));
    }
    listener_ = std::move(*listener);
    const std::string& address = listener_->address();
    port_ = std::stoi(address.substr(address.rfind(':') + 1));
    thread_ = std::thread([this] { io_.run(); });
    return {};
  }

  int port() const override { return port_; }

  // ---- KvConnectorWorker -------------------------------------------------------------------------------------------
  Status register_cache(const kv::CacheGeometry& g, std::span<const CacheLayer> layers) override {
    MANTA_TRY(mover_->register_cache(g, layers));
    const std::lock_guard lock(mutex_);
    auto& fits = options_.compatibility;
    fits.emplace_back("cache dtype", to_string(g.dtype));
    fits.emplace_back("block_size", std::to_string(g.block_size));
    fits.emplace_back("num_layers (with the MTP module's)", std::to_string(g.num_layers));
    fits.emplace_back("kv_lora_rank", std::to_string(g.kv_lora_rank));
    fits.emplace_back("qk_rope_head_dim", std::to_string(g.qk_rope_head_dim));
    // A GPU's rows are of other kernels, and fp8_activations auto is something else there.
    fits.emplace_back("cache memory", layers.empty() || layers.front().gpu < 0 ? "host" : "GPU");
    block_bytes_ = g.bytes_per_block();
    welcome_ = encode(OwnerWelcome{options_.engine_id, fits, g.num_blocks, mover_->metadata()});
    return {};
  }

  Compatibility compatibility() const override {
    const std::lock_guard lock(mutex_);
    return options_.compatibility;
  }

  // The tables change before this returns: a lease that was cancelled is over before the step that comes next writes
  // to its blocks.
  void start(const kv::KvActions& actions) override {
    if (actions.empty()) return;
    {
      const std::lock_guard lock(mutex_);
      const Time now = Clock::now();
      for (const kv::KvAction& save : actions.saves) apply_save(save, now);
      for (const RequestId id : actions.cancels) leases_.withdraw(id, "the prefill was cancelled");
      for (const kv::KvAction& open : actions.opens) {
        if (auto source = decode_pull_source(open.remote); source.ok()) pulls_.open(open.request, std::move(*source));
      }
      for (const kv::KvAction& load : actions.loads) {
        auto source = decode_pull_source(load.remote);
        if (source.ok()) pulls_.load(load.request, std::move(*source), load.blocks, load.num_tokens);
      }
      for (const RequestId id : actions.cancels) pulls_.cancel(id);
    }
    asio::post(io_, [this] { flush(); });
  }

  void wait_for_layer(int) override {}
  void layer_done(int) override {}

  kv::KvProgress poll() override {
    const std::lock_guard lock(mutex_);
    kv::KvProgress out = pulls_.take_progress();
    out.sent = std::exchange(released_, {});
    out.counters = {pulls_.bytes_received(), leases_.bytes_sent(),  pulls_.num_failed(),
                    leases_.num_expired(),   leases_.num_refused(), leases_.num_leases()};
    return out;
  }

  void set_wake(std::function<void()> wake) override {
    const std::lock_guard lock(mutex_);
    wake_ = std::move(wake);
  }

 private:
  struct Reader {  // a peer that pulls from here
    FrameConnectionPtr stream;
    bool greeted = false;
    std::string engine_id;
  };
  struct Owner {  // a peer we pull from
    FrameConnectionPtr stream;
    std::shared_ptr<MoverPeer> mover;  // set once it has welcomed us
    std::string engine_id;
    std::vector<PullTable::Send> waiting;  // for the welcome
    Time last_heard;
    Time last_beat;
  };
  using OwnerPtr = std::shared_ptr<Owner>;

  void apply_save(const kv::KvAction& save, Time now) {
    const auto note = unpack_message<OfferNote>(save.remote, "offer note");
    if (!note.ok()) return;
    if (note->kind == OfferNote::Kind::kRestarted) return leases_.restart(save.request);
    leases_.offer(save.request, note->key, save.blocks, save.num_tokens, note->kind == OfferNote::Kind::kFinal, now);
  }

  // ---- peers that pull from here ----
  void accept(FrameConnectionPtr stream) {
    const uint64_t id = ++last_connection_;
    readers_[id].stream = stream;
    stream->start([this, id](Frame&& frame) { on_reader_frame(id, frame); },
                  [this, id](const Error& e) { on_reader_gone(id, e); });
  }

  void on_reader_frame(uint64_t id, const Frame& frame) {
    Reader& reader = readers_.at(id);
    const Status status = frame.kind == FrameKind::kHello ? greet(reader, frame) : serve(id, reader, frame);
    if (!status.ok()) {
      spdlog::warn("KV side channel, reader {}: {}", reader.engine_id, status.error().message);
      reader.stream->send(FrameKind::kRefuse, {}, status.error().message);
      reader.stream->finish(status.error().message);
    }
    flush();
  }

  Status greet(Reader& reader, const Frame& frame) {
    MANTA_ASSIGN(const ReaderHello hello, decode_reader_hello(frame.payload));
    const std::lock_guard lock(mutex_);
    if (welcome_.empty()) return error(ErrorCode::kUnavailable, "this engine is still loading");
    const std::string differs = difference(options_.compatibility, hello.compatibility);
    if (!differs.empty()) return error(ErrorCode::kFailedPrecondition, "the caches do not fit: " + differs);
    reader.engine_id = hello.engine_id;
    reader.greeted = true;
    reader.stream->send(FrameKind::kWelcome, {}, welcome_);
    return {};
  }

  Status serve(uint64_t id, Reader& reader, const Frame& frame) {
    if (!reader.greeted) return error(ErrorCode::kDataLoss, "frames before the welcome");
    const std::lock_guard lock(mutex_);
    const Time now = Clock::now();
    leases_.advance(now);  // a reader that slept past its lease must not wake it up again
    leases_.heard(id, now);
    switch (frame.kind) {
      case FrameKind::kLeaseOpen: {
        MANTA_ASSIGN(const LeaseOpen m, decode_lease_open(frame.payload));
        leases_.open({id, m.pull}, m.key, std::max(1, m.num_readers), m.wait, now);
        return {};
      }
      case FrameKind::kLeaseDone: {
        MANTA_ASSIGN(const LeaseDone m, decode_lease_done(frame.payload));
        leases_.done({id, m.pull}, m.generation, m.num_bytes);
        return {};
      }
      case FrameKind::kLeaseCancel: {
        MANTA_ASSIGN(const LeaseCancel m, decode_lease_cancel(frame.payload));
        leases_.cancel({id, m.pull}, now);
        return {};
      }
      case FrameKind::kHeartbeat: reader.stream->send(FrameKind::kHeartbeat, {}, {}); return {};
      default: return error(ErrorCode::kDataLoss, fmt::format("unexpected frame: {}", to_string(frame.kind)));
    }
  }

  void on_reader_gone(uint64_t id, const Error& e) {
    if (readers_.at(id).greeted) spdlog::info("KV reader {} left: {}", readers_.at(id).engine_id, e.message);
    readers_.erase(id);
    {
      const std::lock_guard lock(mutex_);
      leases_.connection_gone(id, Clock::now());
    }
    flush();
  }

  // ---- peers we pull from ----
  OwnerPtr owner_of(const PullSource& source) {
    OwnerPtr& owner = owners_[source.peer()];
    if (owner != nullptr) return owner;
    owner = std::make_shared<Owner>();
    owner->last_heard = owner->last_beat = Clock::now();
    const std::string peer = source.peer();
    connect_frames(io_, "tcp:" + peer, [this, peer, weak = std::weak_ptr(owner)](Result<FrameConnectionPtr> stream) {
      const OwnerPtr made = weak.lock();
      if (made == nullptr) return;  // given up meanwhile
      if (!stream.ok()) return lose(peer, stream.error().message);
      start(peer, *made, weak, std::move(*stream));
    });
    return owner;
  }

  void start(const std::string& peer, Owner& made, const std::weak_ptr<Owner>& weak, FrameConnectionPtr stream) {
    made.stream = std::move(stream);
    made.last_heard = Clock::now();
    made.stream->start(
        [this, peer, weak](Frame&& frame) {
          if (const OwnerPtr owner = weak.lock()) on_owner_frame(peer, *owner, frame);
        },
        [this, peer, weak](const Error& e) {
          if (!weak.expired()) lose(peer, e.message);
        });
    made.stream->send(FrameKind::kHello, {}, encode(ReaderHello{options_.engine_id, compatibility()}));
  }

  void on_owner_frame(const std::string& peer, Owner& owner, const Frame& frame) {
    const auto it = owners_.find(peer);
    if (it == owners_.end() || it->second.get() != &owner) return;
    owner.last_heard = Clock::now();
    const Status status = hear(peer, owner, frame);
    if (!status.ok()) lose(peer, status.error().message);
    flush();
  }

  Status hear(const std::string& peer, Owner& owner, const Frame& frame) {
    using Kind = LeaseMessage::Kind;
    switch (frame.kind) {
      case FrameKind::kWelcome: return on_welcome(owner, frame);
      case FrameKind::kRefuse: return error(ErrorCode::kFailedPrecondition, frame.payload.substr(0, 1000));
      case FrameKind::kHeartbeat: return {};
      case FrameKind::kLeaseOffer: return on_lease(peer, owner, Kind::kOffer, frame);
      case FrameKind::kLeaseConfirmed: return on_lease(peer, owner, Kind::kConfirmed, frame);
      case FrameKind::kLeaseRefused: return on_lease(peer, owner, Kind::kRefused, frame);
      default: return error(ErrorCode::kDataLoss, fmt::format("unexpected frame: {}", to_string(frame.kind)));
    }
  }

  Status on_welcome(Owner& owner, const Frame& frame) {
    MANTA_ASSIGN(OwnerWelcome welcome, decode_owner_welcome(frame.payload));
    const std::string differs = difference(compatibility(), welcome.compatibility);
    if (!differs.empty()) return error(ErrorCode::kFailedPrecondition, "the caches do not fit: " + differs);
    owner.engine_id = welcome.engine_id;
    owner.mover = std::make_shared<MoverPeer>();
    owner.mover->metadata = std::move(welcome.metadata);
    owner.mover->num_blocks = welcome.num_blocks;
    for (const auto& send : std::exchange(owner.waiting, {})) tell(owner, send);
    return {};
  }

  Status on_lease(const std::string& peer, Owner& owner, LeaseMessage::Kind kind, const Frame& frame) {
    if (owner.mover == nullptr) return error(ErrorCode::kDataLoss, "a lease before the welcome");
    MANTA_ASSIGN(const LeaseMessage m, decode_lease_message(kind, frame.payload));
    const std::lock_guard lock(mutex_);
    pulls_.on_message(peer, m, owner.mover->num_blocks);
    return {};
  }

  void lose(const std::string& peer, const std::string& why) {
    const auto it = owners_.find(peer);
    if (it == owners_.end()) return;
    spdlog::warn("KV owner {}: {}", peer, why);
    const OwnerPtr owner = std::move(it->second);
    owners_.erase(it);
    if (owner->stream) owner->stream->close(why);
    {
      const std::lock_guard lock(mutex_);
      pulls_.on_peer_lost(peer, fmt::format("prefill engine {}: {}", peer, why));
    }
    asio::post(io_, [this] { flush(); });
  }

  void tell(Owner& owner, const PullTable::Send& send) {
    switch (send.kind) {
      case PullTable::Send::Kind::kOpen: return open(owner, send);
      case PullTable::Send::Kind::kDone:
        return owner.stream->send(FrameKind::kLeaseDone, {},
                                  encode(LeaseDone{send.pull, send.generation, send.num_bytes}));
      case PullTable::Send::Kind::kCancel:
        return owner.stream->send(FrameKind::kLeaseCancel, {}, encode(LeaseCancel{send.pull}));
    }
  }

  void open(Owner& owner, const PullTable::Send& send) {
    const PullSource& s = send.source;
    if (s.engine_id == owner.engine_id) {
      return owner.stream->send(FrameKind::kLeaseOpen, {}, encode(LeaseOpen{send.pull, s.key, s.num_readers, s.wait}));
    }
    LeaseMessage refused;
    refused.kind = LeaseMessage::Kind::kRefused;
    refused.reader.pull = send.pull;
    refused.reason =
        fmt::format("engine {} was asked for at {}, where {} is now", s.engine_id, s.peer(), owner.engine_id);
    const std::lock_guard lock(mutex_);
    pulls_.on_message(s.peer(), refused, 0);
    asio::post(io_, [this] { flush(); });
  }

  // ---- what the tables want ----
  void flush() {
    std::vector<LeaseMessage> messages;
    std::vector<PullTable::Send> sends;
    std::vector<PullTable::Read> reads;
    bool busy = false;
    {
      const std::lock_guard lock(mutex_);
      messages = leases_.take_messages();
      sends = pulls_.take_sends();
      reads = pulls_.take_reads();
      const std::vector<RequestId> released = leases_.take_released();
      released_.insert(released_.end(), released.begin(), released.end());
      const bool news = !released_.empty() || pulls_.has_progress();
      busy = !leases_.idle() || !pulls_.idle();
      if (news && wake_) wake_();  // under the mutex: after set_wake nobody calls the one before
    }
    for (const LeaseMessage& m : messages) answer(m);
    for (const PullTable::Send& send : sends) {
      if (send.kind != PullTable::Send::Kind::kOpen && !owners_.contains(send.source.peer())) continue;
      const OwnerPtr owner = owner_of(send.source);
      owner->mover == nullptr ? owner->waiting.push_back(send) : tell(*owner, send);
    }
    for (PullTable::Read& read : reads) move(std::move(read));
    if (busy && !ticking_) tick();
  }

  void answer(const LeaseMessage& m) {
    const auto it = readers_.find(m.reader.connection);
    if (it == readers_.end()) return;
    const FrameKind kind = m.kind == LeaseMessage::Kind::kOffer       ? FrameKind::kLeaseOffer
                           : m.kind == LeaseMessage::Kind::kConfirmed ? FrameKind::kLeaseConfirmed
                                                                      : FrameKind::kLeaseRefused;
    it->second.stream->send(kind, {}, encode(m));
  }

  void move(PullTable::Read read) {
    const auto it = owners_.find(read.peer);
    if (it != owners_.end() && it->second->mover != nullptr) {
      return mover_thread_.submit({read.pull, it->second->mover, std::move(read.blocks)});
    }
    const std::lock_guard lock(mutex_);
    pulls_.on_read(read.pull, error(ErrorCode::kUnavailable, "the prefill engine left"), 0);
    asio::post(io_, [this] { flush(); });
  }

  void on_read(uint64_t pull, const Status& status, size_t num_blocks) {  // on the mover's thread
    {
      const std::lock_guard lock(mutex_);
      pulls_.on_read(pull, status, num_blocks * block_bytes_);
    }
    asio::post(io_, [this] { flush(); });
  }

  void tick() {
    ticking_ = true;
    tick_.expires_after(kTick);
    tick_.async_wait([this](boost::system::error_code ec) {
      ticking_ = false;
      if (ec) return;
      const Time now = Clock::now();
      {
        const std::lock_guard lock(mutex_);
        leases_.advance(now);
      }
      beat(now);
      flush();
    });
  }

  void beat(Time now) {
    std::vector<std::pair<std::string, std::string>> lost;
    for (auto& [peer, owner] : owners_) {
      if (!in_use(peer)) {
        owner->last_heard = now;
        continue;
      }
      const auto silent = now - owner->last_heard;
      if (owner->mover == nullptr && silent > kConnectDeadline) lost.emplace_back(peer, "does not answer");
      if (silent > options_.lease.lease) lost.emplace_back(peer, "has fallen silent");
      if (owner->mover == nullptr || now - owner->last_beat < options_.lease.lease / 6) continue;
      owner->last_beat = now;
      owner->stream->send(FrameKind::kHeartbeat, {}, {});
    }
    for (const auto& [peer, why] : lost) lose(peer, why);
  }

  bool in_use(const std::string& peer) {
    const std::lock_guard lock(mutex_);
    return pulls_.uses(peer);
  }

  ExchangeOptions options_;
  int port_ = 0;

  // The side channel thread's own.
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  asio::steady_timer tick_;
  std::unique_ptr<FrameListener> listener_;
  std::map<uint64_t, Reader> readers_;
  std::map<std::string, OwnerPtr> owners_;  // by "host:port"
  uint64_t last_connection_ = 0;
  bool ticking_ = false;

  mutable std::mutex mutex_;
  LeaseTable leases_;  // under mutex_, as the following
  PullTable pulls_;
  std::vector<RequestId> released_;
  std::string welcome_;  // empty until the cache is registered
  size_t block_bytes_ = 0;
  std::function<void()> wake_;

  std::unique_ptr<BlockMover> mover_;
  std::thread thread_;
  MoverThread mover_thread_;
};

}  // namespace

Result<std::unique_ptr<Exchange>> Exchange::listen(ExchangeOptions options, std::unique_ptr<BlockMover> mover) {
  auto made = std::make_unique<RunningExchange>(std::move(options), std::move(mover));
  MANTA_TRY(made->listen());
  return std::unique_ptr<Exchange>(std::move(made));
}

}  // namespace manta::transfer
