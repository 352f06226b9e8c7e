#include <utility>  // first: Beast 1.74 uses std::exchange without including it
// clang-format needs the gap
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "api/http/connection.h"
#include "api/http/response_text.h"
#include "base/log.h"

namespace manta::api {
namespace {

namespace http = boost::beast::http;
using Clock = std::chrono::steady_clock;
using Parser = http::request_parser<http::string_body>;

constexpr size_t kSmallRead = 4 << 10;
constexpr size_t kBodyRead = 64 << 10;
constexpr size_t kMaxLingerBytes = 1 << 20;
constexpr size_t kKeptOutboxBytes = 64 << 10;
constexpr size_t kFlushNowBytes = 64 << 10;
// "0\r\n\r\n". Boost.Beast 1.74 asserts when it is given less of the last chunk, as when that comes in small packets.
constexpr size_t kShortestEnd = 5;
constexpr size_t kNoChunk = static_cast<size_t>(-1);
constexpr std::string_view kChunkHead = "00000000\r\n";  // the size is filled in when the chunk is sealed

bool says_continue(const HttpRequest& request) {
  return equals_ignoring_case(request.header("Expect"), "100-continue");
}

class HttpConnection : public Connection,
                       public ResponseWriter,
                       public Flushable,
                       public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(const ConnectionHost& host, std::unique_ptr<Transport> transport)
      : io_(host.io),
        flush_queue_(host.flush_queue),
        service_(host.service),
        limits_(host.limits),
        transport_(std::move(transport)),
        wakeup_(host.io) {}

  void start(std::function<void()> on_end) {
    asio::co_spawn(
        io_, [self = shared_from_this()] { return self->run(); },
        [self = shared_from_this(), on_end = std::move(on_end)](std::exception_ptr failure) {
          if (failure) self->log_failure(failure);
          self->close();
          on_end();
        });
  }

  // Connection
  void drain() override {
    draining_ = true;
    notify();
  }
  void abort() override {
    tell_gone();
    close();
  }

  // Flushable
  void flush() override;

  // ResponseWriter
  void send(HttpResponse response) override;
  void begin_stream(const std::vector<HttpHeader>& headers) override;
  std::string& body() override;
  void commit() override;
  void end_stream() override;
  void on_gone(std::function<void()> callback) override { on_gone_ = std::move(callback); }
  bool gone() const override { return gone_; }

 private:
  enum class Phase { kReading, kAnswering, kStreaming, kAnswered };
  enum class Wait { kBytes, kEnd, kTimeout };

  asio::awaitable<void> run();
  asio::awaitable<bool> handshake();
  asio::awaitable<bool> read_request();
  asio::awaitable<bool> read_head();
  asio::awaitable<bool> read_body();
  asio::awaitable<Wait> more_bytes(Clock::time_point deadline);
  asio::awaitable<void> answer();
  asio::awaitable<void> linger();
  asio::awaitable<void> park(Clock::time_point deadline);

  bool feed();
  void reject(int status, const std::string& why);
  void take_head();
  void pump(size_t num_bytes);
  void write_rest();
  void seal_chunk();
  void tell_gone();
  void queue_flush();
  void finish_response();
  void close();
  void log_failure(std::exception_ptr failure);

  std::vector<HttpHeader> with_common(std::vector<HttpHeader> headers) const {
    headers.insert(headers.end(), common_headers_.begin(), common_headers_.end());
    return headers;
  }
  void notify() { wakeup_.cancel(); }
  bool all_sent() const { return outbox_.empty() && !writing_; }
  size_t backlog() const { return outbox_.size() + sending_.size() - num_sent_; }

  asio::io_context& io_;
  FlushQueue& flush_queue_;
  HttpService& service_;
  const HttpLimits& limits_;
  std::unique_ptr<Transport> transport_;
  asio::steady_timer wakeup_;  // run() parks here; whoever changes what it waits for cancels it

  boost::beast::flat_buffer inbox_;
  bool reading_ = false;
  bool read_ended_ = false;
  std::optional<Parser> parser_;
  HttpRequest request_;
  std::vector<HttpHeader> common_headers_;

  Phase phase_ = Phase::kReading;
  bool keep_alive_ = false;
  bool is_head_ = false;      // a HEAD request: the answer has no body
  bool is_http_1_0_ = false;  // no chunked coding: a stream ends with the connection
  bool is_chunked_ = false;
  bool draining_ = false;
  bool closed_ = false;
  bool gone_ = false;
  std::function<void()> on_gone_;

  std::string outbox_;             // what the next flush sends
  size_t chunk_start_ = kNoChunk;  // of the open chunk in outbox_
  std::string sending_;            // in the write that runs
  size_t num_sent_ = 0;            // of sending_
  bool writing_ = false;
  bool flush_queued_ = false;
  Clock::time_point last_progress_;
  std::string discarded_;  // body() of a response whose client is gone
};

asio::awaitable<void> HttpConnection::run() {
  bool going = co_await handshake();
  while (going && !closed_) {
    const bool have_request = co_await read_request();
    if (!have_request && phase_ == Phase::kReading) break;  // nothing came, or no more
    co_await answer();
    going = keep_alive_ && !draining_ && !gone_;
    phase_ = Phase::kReading;
  }
  co_await linger();
}

asio::awaitable<bool> HttpConnection::handshake() {
  std::optional<error_code> result;
  transport_->handshake([self = shared_from_this(), &result](error_code ec) {
    if (self->closed_) return;  // result is gone with the coroutine's frame
    result = ec;
    self->notify();
  });
  const auto deadline = Clock::now() + limits_.header_timeout;
  while (!result && !closed_ && Clock::now() < deadline) co_await park(deadline);
  if (!result) close();
  co_return result && !*result;
}

// Waits until notify() or the deadline; callers look again at what they wait for.
asio::awaitable<void> HttpConnection::park(Clock::time_point deadline) {
  wakeup_.expires_at(deadline);
  error_code ignored;
  co_await wakeup_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

void HttpConnection::pump(size_t num_bytes) {
  if (reading_ || read_ended_ || closed_) return;
  reading_ = true;
  transport_->read_some(inbox_.prepare(num_bytes), [self = shared_from_this()](error_code ec, size_t n) {
    self->reading_ = false;
    self->inbox_.commit(n);
    if (ec) self->read_ended_ = true;
    self->notify();
  });
}

asio::awaitable<HttpConnection::Wait> HttpConnection::more_bytes(Clock::time_point deadline) {
  const size_t before = inbox_.size();
  const bool in_body = parser_->is_header_done();
  const bool idle = !in_body && before == 0;
  while (inbox_.size() == before) {
    if (read_ended_ || closed_ || (idle && draining_)) co_return Wait::kEnd;
    if (Clock::now() >= deadline) co_return Wait::kTimeout;
    pump(in_body ? kBodyRead : kSmallRead);
    co_await park(deadline);
  }
  co_return Wait::kBytes;
}

// Gives the parser what is there. False: the bytes are no request, and the answer that says so is on its way.
bool HttpConnection::feed() {
  error_code ec;
  inbox_.consume(parser_->put(inbox_.data(), ec));
  if (!ec || ec == http::error::need_more) return true;
  if (ec == http::error::header_limit) {
    reject(431, fmt::format("request head is longer than {} bytes", limits_.max_header_bytes));
  } else if (ec == http::error::body_limit) {
    reject(413, fmt::format("request body is longer than {} bytes", limits_.max_body_bytes));
  } else if (ec == http::error::bad_version) {
    reject(505, "HTTP/1.0 and HTTP/1.1 are served");
  } else {
    reject(400, fmt::format("malformed HTTP request: {}", ec.message()));
  }
  return false;
}

void HttpConnection::reject(int status, const std::string& why) {
  phase_ = Phase::kAnswering;
  keep_alive_ = false;
  HttpResponse response = service_.bad_request(status, why);
  response.close = true;
  send(std::move(response));
}

asio::awaitable<bool> HttpConnection::read_request() {
  common_headers_.clear();
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(std::min<size_t>(limits_.max_header_bytes, UINT32_MAX)));
  parser_->body_limit(limits_.max_body_bytes);
  const bool have_head = co_await read_head();
  if (!have_head) co_return false;
  common_headers_ = service_.common_headers(request_);
  if (auto refusal = service_.refuse(request_)) {
    if (!parser_->is_done()) refusal->close = true;  // its body is not read
    phase_ = Phase::kAnswering;
    send(std::move(*refusal));
    co_return false;
  }
  const bool have_body = co_await read_body();
  co_return have_body;
}

asio::awaitable<bool> HttpConnection::read_head() {
  auto deadline = Clock::now() + limits_.idle_timeout;
  bool begun = false;
  while (!parser_->is_header_done()) {
    if (!begun && inbox_.size() > 0) {
      begun = true;
      deadline = Clock::now() + limits_.header_timeout;
    }
    if (begun && !feed()) co_return false;
    if (parser_->is_header_done()) break;
    const Wait wait = co_await more_bytes(deadline);
    if (wait == Wait::kTimeout && begun) reject(408, "the request head did not arrive in time");
    if (wait != Wait::kBytes) co_return false;
  }
  take_head();
  const auto& fields = parser_->get();
  const auto num_fields = static_cast<size_t>(std::distance(fields.begin(), fields.end()));
  if (num_fields > limits_.max_header_count) {
    reject(431, fmt::format("{} header lines, at most {}", num_fields, limits_.max_header_count));
    co_return false;
  }
  co_return true;
}

void HttpConnection::take_head() {
  const auto& message = parser_->get();
  const std::string_view target{message.target().data(), message.target().size()};
  const size_t question = target.find('?');
  request_ = {};
  request_.method = std::string(message.method_string());
  request_.path = target.substr(0, question);
  if (question != std::string_view::npos) request_.query = target.substr(question + 1);
  for (const auto& field : message) {
    if (request_.headers.size() == limits_.max_header_count) break;
    request_.headers.push_back({std::string(field.name_string()), std::string(field.value())});
  }
  is_head_ = message.method() == http::verb::head;
  is_http_1_0_ = message.version() < 11;
  keep_alive_ = message.keep_alive();
}

asio::awaitable<bool> HttpConnection::read_body() {
  if (!parser_->is_done() && says_continue(request_)) {
    outbox_ += "HTTP/1.1 100 Continue\r\n\r\n";
    flush();
  }
  parser_->eager(true);
  const auto deadline = Clock::now() + limits_.body_deadline;
  while (!parser_->is_done()) {
    if (inbox_.size() >= (parser_->chunked() ? kShortestEnd : 1)) {
      if (!feed()) co_return false;
      if (parser_->is_done()) break;
    }
    // What the parser leaves is the head of a chunk or the trailer, of which it takes all or nothing.
    if (inbox_.size() > limits_.max_header_bytes) {
      reject(431, fmt::format("chunk head or trailer is longer than {} bytes", limits_.max_header_bytes));
      co_return false;
    }
    const Wait wait = co_await more_bytes(std::min(deadline, Clock::now() + limits_.body_timeout));
    if (wait == Wait::kTimeout) reject(408, "the request body did not arrive in time");
    if (wait != Wait::kBytes) co_return false;
  }
  request_.body = std::move(parser_->get().body());
  co_return true;
}

asio::awaitable<void> HttpConnection::answer() {
  if (phase_ == Phase::kReading) {
    phase_ = Phase::kAnswering;
    parser_.reset();
    if (inbox_.size() == 0) inbox_.shrink_to_fit();
    service_.handle(std::move(request_), shared_from_this());
  }
  while (!closed_ && !(phase_ == Phase::kAnswered && all_sent())) {
    if (gone_) break;
    if (read_ended_ && phase_ != Phase::kAnswered) {
      tell_gone();
      break;
    }
    if (inbox_.size() < limits_.max_pipelined_bytes) pump(kSmallRead);
    const bool stalled = writing_ && Clock::now() - last_progress_ >= limits_.write_timeout;
    if (stalled) {
      tell_gone();
      break;
    }
    co_await park(writing_ ? last_progress_ + limits_.write_timeout : Clock::time_point::max());
  }
  on_gone_ = nullptr;
}

// Closing with unread input would reset the connection, and the answer could be lost on its way.
asio::awaitable<void> HttpConnection::linger() {
  if (closed_ || gone_) co_return;
  transport_->shutdown_send();
  const auto deadline = Clock::now() + limits_.linger_timeout;
  size_t num_discarded = 0;
  while (!read_ended_ && !closed_ && num_discarded < kMaxLingerBytes && Clock::now() < deadline) {
    num_discarded += inbox_.size();
    inbox_.consume(inbox_.size());
    pump(kSmallRead);
    co_await park(deadline);
  }
}

void HttpConnection::send(HttpResponse response) {
  if (gone_ || phase_ == Phase::kAnswered) return;
  keep_alive_ = keep_alive_ && !response.close && !draining_;
  const ResponseHead head{.status = response.status,
                          .content_type = response.content_type,
                          .content_length = response.body.size(),
                          .keep_alive = keep_alive_};
  service_.on_response(response.status);
  append_head(outbox_, head, with_common(std::move(response.headers)));
  if (!is_head_) outbox_ += response.body;
  finish_response();
}

void HttpConnection::begin_stream(const std::vector<HttpHeader>& headers) {
  if (gone_) return;
  phase_ = Phase::kStreaming;
  service_.on_response(200);
  is_chunked_ = !is_http_1_0_;
  keep_alive_ = keep_alive_ && is_chunked_ && !draining_;
  append_head(outbox_,
              {.content_type = "text/event-stream; charset=utf-8", .chunked = is_chunked_, .keep_alive = keep_alive_},
              with_common(headers));
}

std::string& HttpConnection::body() {
  if (gone_) {
    discarded_.clear();
    return discarded_;
  }
  if (is_chunked_ && chunk_start_ == kNoChunk) {
    chunk_start_ = outbox_.size();
    outbox_ += kChunkHead;
  }
  return outbox_;
}

void HttpConnection::seal_chunk() {
  if (chunk_start_ == kNoChunk) return;
  const size_t num_bytes = outbox_.size() - chunk_start_ - kChunkHead.size();
  if (num_bytes == 0) {
    outbox_.resize(chunk_start_);
  } else {
    static constexpr char kDigits[] = "0123456789abcdef";
    size_t rest = num_bytes;
    for (size_t i = 8; i-- > 0; rest >>= 4) outbox_[chunk_start_ + i] = kDigits[rest & 15];
    outbox_ += "\r\n";
  }
  chunk_start_ = kNoChunk;
}

void HttpConnection::commit() {
  if (gone_) return;
  if (writing_ && backlog() > limits_.max_backlog_bytes) {
    log_failure(nullptr);
    tell_gone();
    return;
  }
  // A burst that comes faster than the loop turns must not pile up unseen by the bound above.
  if (!writing_ && outbox_.size() >= kFlushNowBytes) return flush();
  queue_flush();
}

void HttpConnection::end_stream() {
  if (gone_ || phase_ != Phase::kStreaming) return;
  seal_chunk();
  if (is_chunked_) outbox_ += "0\r\n\r\n";
  is_chunked_ = false;
  finish_response();
}

void HttpConnection::finish_response() {
  phase_ = Phase::kAnswered;
  queue_flush();
}

void HttpConnection::queue_flush() {
  if (!std::exchange(flush_queued_, true)) flush_queue_.add(shared_from_this());
}

void HttpConnection::flush() {
  flush_queued_ = false;
  if (closed_ || gone_ || writing_) return;
  seal_chunk();
  if (outbox_.empty()) return;
  error_code ec;
  const size_t n = transport_->write_now(outbox_, ec);
  if (ec) return tell_gone();
  if (n < outbox_.size()) {
    outbox_.swap(sending_);
    num_sent_ = n;
    writing_ = true;
    last_progress_ = Clock::now();
    notify();  // run() parks without a deadline as long as nothing waits to be written
    return write_rest();
  }
  outbox_.clear();
  if (outbox_.capacity() > kKeptOutboxBytes) outbox_.shrink_to_fit();
  if (phase_ == Phase::kAnswered) notify();
}

void HttpConnection::write_rest() {
  const asio::const_buffer rest(sending_.data() + num_sent_, sending_.size() - num_sent_);
  transport_->write_some(rest, [self = shared_from_this()](error_code ec, size_t n) {
    if (self->closed_ || ec) {
      self->writing_ = false;
      return self->tell_gone();
    }
    self->num_sent_ += n;
    self->last_progress_ = Clock::now();
    if (self->num_sent_ < self->sending_.size()) return self->write_rest();
    self->writing_ = false;
    self->num_sent_ = 0;
    self->sending_.clear();
    if (self->sending_.capacity() > kKeptOutboxBytes) self->sending_.shrink_to_fit();
    self->flush();
    self->notify();
  });
}

// The response cannot be delivered any more. Callers may be inside a call of the handler's, so it learns of it later.
void HttpConnection::tell_gone() {
  if (std::exchange(gone_, true)) return;
  if (auto callback = std::exchange(on_gone_, nullptr)) asio::post(io_, std::move(callback));
  notify();
}

void HttpConnection::close() {
  if (std::exchange(closed_, true)) return;
  transport_->close();
  notify();
}

void HttpConnection::log_failure(std::exception_ptr failure) {
  if (!failure) {
    spdlog::debug("a client does not read its stream: {} bytes wait, at most {}", backlog(), limits_.max_backlog_bytes);
    return;
  }
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    spdlog::error("connection ended by an exception: {}", e.what());
  }
}

}  // namespace

std::shared_ptr<Connection> start_connection(const ConnectionHost& host, std::unique_ptr<Transport> transport,
                                             std::function<void()> on_end) {
  auto connection = std::make_shared<HttpConnection>(host, std::move(transport));
  connection->start(std::move(on_end));
  return connection;
}

}  // namespace manta::api
