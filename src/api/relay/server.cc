#include "api/relay/server.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "api/relay/messages.h"
#include "base/frame_connection.h"
#include "base/log.h"

namespace manta::api {

namespace asio = boost::asio;

namespace {

// How old a router's picture of the engines' load may be. It counts its own requests itself.
constexpr std::chrono::milliseconds kViewPeriod{100};
// A frame of pieces is sent once it has so many bytes; one piece more still fits a frame.
constexpr size_t kSpillBytes = 1 << 20;

class Session;
using SessionPtr = std::shared_ptr<Session>;

// The answer of one stream. Its handler may outlive the session.
class RelayWriter : public ResponseWriter {
 public:
  RelayWriter(const SessionPtr& session, asio::io_context& io, StreamId stream, bool is_head)
      : session_(session), io_(io), stream_(stream), is_head_(is_head) {}

  void send(HttpResponse response) override;
  void begin_stream(const std::vector<HttpHeader>& headers) override;
  std::string& body() override { return pending_; }
  void commit() override { queue(); }
  void end_stream() override;
  void note_tokens(int choice, std::span<const TokenId> tokens, bool finished) override {
    if (!gone_) tokens_.push_back({choice, finished, {tokens.begin(), tokens.end()}});
  }
  void on_gone(std::function<void()> callback) override { on_gone_ = std::move(callback); }
  bool gone() const override { return gone_; }

  // Appends what waits, in pieces; after each, spill() may send and clear the payload. True when the answer is
  // complete.
  template <typename Spill>
  bool append_pieces(std::string& payload, Spill&& spill);
  void tell_gone() {
    if (std::exchange(gone_, true)) return;
    pending_.clear();
    if (auto callback = std::exchange(on_gone_, nullptr)) asio::post(io_, std::move(callback));
  }
  StreamId stream() const { return stream_; }

  bool queued = false;

 private:
  void queue();

  std::weak_ptr<Session> session_;
  asio::io_context& io_;
  const StreamId stream_;
  const bool is_head_;
  int status_ = 0;  // to be sent with the next piece
  std::string content_type_;
  std::vector<HttpHeader> headers_;
  std::vector<PieceTokens> tokens_;
  std::string pending_;
  bool ended_ = false;
  bool gone_ = false;
  std::function<void()> on_gone_;
};
using RelayWriterPtr = std::shared_ptr<RelayWriter>;

struct Shared {
  asio::io_context& io;
  FlushQueue& flush_queue;
  HttpService& service;
  RelayOptions options;
  size_t num_streams = 0;
  bool draining = false;
};
using SharedPtr = std::shared_ptr<Shared>;

RankViews views_of(const Shared& shared) {
  RankViews out{.pid = ::getpid(), .draining = shared.draining};
  const Generator* generator = shared.options.generator();
  if (generator == nullptr) return out;
  if (const auto welcome = generator->model()) out.welcome = engine::encode(*welcome);
  for (const auto& engine : generator->engines()) {
    out.ranks.push_back({.rank = engine.rank,
                         .ready = engine.state == "ready",
                         .num_running = engine.load.num_running,
                         .num_waiting = engine.load.num_waiting,
                         .num_free_blocks = engine.load.num_free_blocks,
                         .num_blocks = engine.load.num_blocks,
                         .kv_transfer = engine.kv_transfer});
  }
  return out;
}

// One router's connection.
class Session : public Flushable, public std::enable_shared_from_this<Session> {
 public:
  Session(SharedPtr shared, FrameConnectionPtr connection)
      : shared_(std::move(shared)), connection_(std::move(connection)) {}

  void start(std::function<void()> on_end) {
    connection_->start([self = shared_from_this()](Frame&& frame) { self->on_frame(std::move(frame)); },
                       [self = shared_from_this(), on_end = std::move(on_end)](const Error& why) {
                         spdlog::debug("router connection ended: {}", why.message);
                         self->end();
                         on_end();
                       });
  }

  void leave() {
    end();
    connection_->finish("leaving");
  }

  void send_views(const std::string& views) {
    if (!greeted_ || views == last_views_) return;
    last_views_ = views;
    connection_->send(FrameKind::kRankViews, Epoch{}, views);
  }

  void queue(RelayWriter& writer) {
    if (ended_ || std::exchange(writer.queued, true)) return;
    ready_.push_back(writer.stream());
    if (!std::exchange(flush_queued_, true)) shared_->flush_queue.add(shared_from_this());
  }

  void flush() override;

 private:
  void on_frame(Frame&& frame);
  Status on_hello(const Frame& frame);
  Status on_request(const Frame& frame);
  Status on_body(const Frame& frame);
  Status on_cancel(const Frame& frame);
  Status check(const RelayRequest& request) const;
  void begin(RelayRequest&& request);
  void forget(StreamId stream);
  void end();

  SharedPtr shared_;
  FrameConnectionPtr connection_;
  std::unordered_map<StreamId, RelayWriterPtr> writers_;
  std::unordered_map<StreamId, RelayRequest> uploads_;  // whose body is not complete
  std::vector<StreamId> ready_;                         // have bytes to send
  std::string payload_, last_views_;
  bool greeted_ = false;
  bool flush_queued_ = false;
  bool ended_ = false;
};

// ---- RelayWriter ----

void RelayWriter::queue() {
  if (gone_) {
    pending_.clear();
    return;
  }
  if (const auto session = session_.lock()) session->queue(*this);
}

void RelayWriter::send(HttpResponse response) {
  if (gone_) return;
  status_ = response.status;
  content_type_ = std::move(response.content_type);
  headers_ = std::move(response.headers);
  pending_ = is_head_ ? std::string() : std::move(response.body);
  ended_ = true;
  queue();
}

void RelayWriter::begin_stream(const std::vector<HttpHeader>& headers) {
  status_ = 200;
  content_type_ = "text/event-stream; charset=utf-8";
  headers_ = headers;
}

void RelayWriter::end_stream() {
  if (gone_) return;
  ended_ = true;
  queue();
}

template <typename Spill>
bool RelayWriter::append_pieces(std::string& payload, Spill&& spill) {
  queued = false;
  if (gone_) return true;
  Piece piece{.stream = stream_, .status = std::exchange(status_, 0), .tokens = std::move(tokens_)};
  tokens_.clear();
  if (piece.status != 0) {
    piece.content_type = content_type_;
    for (const auto& header : headers_) piece.headers.emplace_back(header.name, header.value);
  }
  std::string_view rest = pending_;
  do {
    piece.bytes = rest.substr(0, kMaxPartBytes);
    rest.remove_prefix(piece.bytes.size());
    piece.end = ended_ && rest.empty();
    append(payload, piece);
    spill();
    piece = Piece{.stream = stream_};
  } while (!rest.empty());
  pending_.clear();
  return ended_;
}

// ---- Session ----

// Everything that became ready in this turn of the loop leaves in one frame, unless it is too much for one.
void Session::flush() {
  flush_queued_ = false;
  if (ended_) return;
  payload_.clear();
  const auto spill = [this] {
    if (payload_.size() < kSpillBytes) return;
    connection_->send(FrameKind::kPieces, Epoch{}, payload_);
    payload_.clear();
  };
  for (const StreamId stream : std::exchange(ready_, {})) {
    const auto it = writers_.find(stream);
    if (it != writers_.end() && it->second->append_pieces(payload_, spill)) forget(stream);
  }
  if (!payload_.empty()) connection_->send(FrameKind::kPieces, Epoch{}, payload_);
}

void Session::on_frame(Frame&& frame) {
  if (ended_) return;
  Status status;
  switch (frame.kind) {
    case FrameKind::kHello: status = on_hello(frame); break;
    case FrameKind::kRequest: status = on_request(frame); break;
    case FrameKind::kBody: status = on_body(frame); break;
    case FrameKind::kCancel: status = on_cancel(frame); break;
    default: status = error(ErrorCode::kDataLoss, fmt::format("unexpected frame: {}", to_string(frame.kind)));
  }
  if (status.ok()) return;
  spdlog::warn("a router's connection is closed: {}", status.error().message);
  connection_->close(status.error().message);
}

Status Session::on_hello(const Frame& frame) {
  MANTA_ASSIGN(const RelayHello hello, decode_relay_hello(frame.payload));
  spdlog::debug("{} has connected", hello.process);
  greeted_ = true;
  send_views(encode(views_of(*shared_)));
  return {};
}

// What the handlers take for granted of a request that went through a router.
Status Session::check(const RelayRequest& request) const {
  const auto bad = [&](const std::string& what) {
    return error(ErrorCode::kDataLoss, fmt::format("relayed request {}: {}", request.stream, what));
  };
  if (writers_.contains(request.stream) || uploads_.contains(request.stream)) return bad("the stream is in use");
  const Relayed& r = request.relayed;
  const auto is_id_character = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-'; };
  if (!std::all_of(r.transfer_id.begin(), r.transfer_id.end(), is_id_character)) return bad("odd transfer_id");
  if (!r.transfer_id.empty() && !r.kv_transfer_params.starts_with('{')) return bad("kv_transfer_params is no object");
  const Generator* generator = shared_->options.generator();
  const auto model = generator != nullptr ? generator->model() : std::nullopt;
  const TokenId vocab_size = model ? model->vocab_size : 0;
  const auto known = [&](const std::vector<TokenId>& ids) {
    return std::all_of(ids.begin(), ids.end(), [&](TokenId id) { return id >= 0 && (!model || id < vocab_size); });
  };
  for (const auto& prompt : r.prompts) {
    if (!known(prompt)) return bad("a prompt has an id outside the vocabulary");
  }
  for (const auto& delivered : r.delivered) {
    if (!model && !delivered.tokens.empty()) return bad("no engine is ready to continue it");
    if (!known(delivered.tokens)) return bad("a delivered token is outside the vocabulary");
  }
  return {};
}

Status Session::on_request(const Frame& frame) {
  MANTA_ASSIGN(RelayRequest request, decode_relay_request(frame.payload));
  if (!greeted_) return error(ErrorCode::kDataLoss, "a request came before hello");
  MANTA_TRY(check(request));
  if (request.more) {
    const StreamId stream = request.stream;
    uploads_.emplace(stream, std::move(request));
  } else {
    begin(std::move(request));
  }
  return {};
}

Status Session::on_body(const Frame& frame) {
  MANTA_ASSIGN(const RelayBody part, decode_relay_body(frame.payload));
  const auto it = uploads_.find(part.stream);
  if (it == uploads_.end()) return {};  // cancelled
  std::string& body = it->second.body;
  if (body.size() + part.bytes.size() > shared_->options.max_body_bytes) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("relayed body of more than {} bytes", shared_->options.max_body_bytes));
  }
  body += part.bytes;
  if (part.more) return {};
  RelayRequest request = std::move(it->second);
  uploads_.erase(it);
  begin(std::move(request));
  return {};
}

Status Session::on_cancel(const Frame& frame) {
  MANTA_ASSIGN(const RelayCancel cancel, decode_relay_cancel(frame.payload));
  uploads_.erase(cancel.stream);
  if (const auto it = writers_.find(cancel.stream); it != writers_.end()) {
    it->second->tell_gone();
    forget(cancel.stream);
  }
  return {};
}

void Session::begin(RelayRequest&& relayed) {
  HttpRequest request{
      .method = std::move(relayed.method), .path = std::move(relayed.path), .query = std::move(relayed.query)};
  for (auto& [name, value] : relayed.headers) request.headers.push_back({std::move(name), std::move(value)});
  request.body = std::move(relayed.body);
  if (relayed.relayed.data_parallel_rank >= 0) relayed.relayed.data_parallel_rank -= shared_->options.first_rank;
  if (relayed.tokenized) request.relayed = std::make_shared<const Relayed>(std::move(relayed.relayed));
  const auto writer =
      std::make_shared<RelayWriter>(shared_from_this(), shared_->io, relayed.stream, request.method == "HEAD");
  writers_.emplace(relayed.stream, writer);
  ++shared_->num_streams;
  if (auto refusal = shared_->service.refuse(request)) return writer->send(std::move(*refusal));
  shared_->service.handle(std::move(request), writer);
}

void Session::forget(StreamId stream) {
  writers_.erase(stream);
  if (--shared_->num_streams == 0) shared_->options.on_idle();
}

void Session::end() {
  if (std::exchange(ended_, true)) return;
  for (const auto& [stream, writer] : writers_) writer->tell_gone();
  const bool had_some = !writers_.empty();
  shared_->num_streams -= writers_.size();
  writers_.clear();
  uploads_.clear();
  if (had_some && shared_->num_streams == 0) shared_->options.on_idle();
}

// ---- the server ----

class Server : public RelayServer {
 public:
  explicit Server(SharedPtr shared) : state_(std::make_shared<State>(std::move(shared))) {}
  ~Server() override {
    state_->shared->options.on_idle = [] {};
    state_->shared->options.generator = []() -> const Generator* { return nullptr; };
    Server::abort();
  }

  Status open() {
    auto& shared = *state_->shared;
    MANTA_ASSIGN(state_->listener, listen_frames(shared.io, shared.options.address,
                                                 [state = state_](FrameConnectionPtr c) { state->add(std::move(c)); }));
    return {};
  }

  const std::string& address() const override { return state_->listener->address(); }
  void drain() override {
    state_->shared->draining = true;
    state_->send_views();
  }
  void abort() override {
    state_->timer.cancel();
    state_->stopped = true;
    if (state_->listener) state_->listener->close();
    for (const auto& session : state_->sessions) session->leave();
  }
  size_t num_streams() const override { return state_->shared->num_streams; }

 private:
  struct State : std::enable_shared_from_this<State> {
    explicit State(SharedPtr s) : shared(std::move(s)), timer(shared->io) {}

    void add(FrameConnectionPtr connection) {
      const auto session = std::make_shared<Session>(shared, std::move(connection));
      sessions.insert(session);
      session->start([self = shared_from_this(), session] { self->sessions.erase(session); });
      if (sessions.size() == 1) arm();
    }
    void send_views() {
      const std::string views = encode(views_of(*shared));
      for (const auto& session : sessions) session->send_views(views);
    }
    // Only while somebody listens; nothing is sent when nothing changed.
    void arm() {
      timer.expires_after(kViewPeriod);
      timer.async_wait([self = shared_from_this()](boost::system::error_code ec) {
        if (ec || self->stopped || self->sessions.empty()) return;
        self->send_views();
        self->arm();
      });
    }

    SharedPtr shared;
    asio::steady_timer timer;
    std::unique_ptr<FrameListener> listener;
    std::unordered_set<SessionPtr> sessions;
    bool stopped = false;
  };
  std::shared_ptr<State> state_;
};

}  // namespace

Result<std::unique_ptr<RelayServer>> RelayServer::open(asio::io_context& io, FlushQueue& flush_queue,
                                                       HttpService& service, RelayOptions options) {
  auto server =
      std::make_unique<Server>(std::make_shared<Shared>(Shared{io, flush_queue, service, std::move(options)}));
  MANTA_TRY(server->open());
  return std::unique_ptr<RelayServer>(std::move(server));
}

}  // namespace manta::api
