#include "router/relay_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "api/openai/api_error.h"
#include "api/openai/request_id.h"
#include "base/log.h"

namespace manta::router {

using Clock = std::chrono::steady_clock;

namespace {

// How long a request whose api died waits for another one, or for the same one started again.
constexpr std::chrono::seconds kPatience{10};
constexpr int kMaxLosses = 8;
constexpr size_t kMaxRefusals = 8;  // in one go; then the client gets the answer, or what was begun waits
constexpr int kMaxFailedPrefills = 2;
constexpr int64_t kExpectedOutput = 256;      // tokens, of requests that do not say
constexpr size_t kMaxDelivered = 1 << 20;     // tokens; more do not fit a frame to be sent again
constexpr size_t kMaxHeaderBytes = 64 << 10;  // of a header that is passed on

// Sent on as they came.
constexpr std::string_view kForwarded[] = {"Authorization", "traceparent", "tracestate"};

}  // namespace

void RelayJob::Leg::close() {
  if (stream != 0) seat.link().cancel(std::exchange(stream, 0));
  seat.leave();
}

void RelayJob::start(JobHost& host, api::HttpRequest request, api::RoutedPrompt prompt, api::ResponseWriterPtr writer,
                     api::Admission::Ticket ticket) {
  auto job =
      std::make_shared<RelayJob>(host, std::move(request), std::move(prompt), std::move(writer), std::move(ticket));
  job->self_ = job;
  job->writer_->on_gone([weak = std::weak_ptr(job)] {
    if (const auto locked = weak.lock()) locked->on_gone();
  });
  job->dispatch();
}

RelayJob::RelayJob(JobHost& host, api::HttpRequest request, api::RoutedPrompt prompt, api::ResponseWriterPtr writer,
                   api::Admission::Ticket ticket)
    : host_(host),
      request_(std::move(request)),
      prompt_(std::move(prompt)),
      writer_(std::move(writer)),
      ticket_(std::move(ticket)),
      rank_(api::data_parallel_rank(request_)),
      seed_(host.draw_seed()),
      created_(std::time(nullptr)) {
  for (const auto& ids : prompt_.prompts) num_prompt_tokens_ += static_cast<int64_t>(ids.size());
  const auto num_sequences = static_cast<int64_t>(prompt_.prompts.size()) * prompt_.n;
  const int64_t output = prompt_.max_tokens > 0 ? prompt_.max_tokens : kExpectedOutput;
  cost_ = num_prompt_tokens_ * prompt_.n + num_sequences * output;
  delivered_.resize(static_cast<size_t>(num_sequences));
  const bool wants_prefixes = host.decode().wants_prefixes() || (host.prefill() && host.prefill()->wants_prefixes());
  if (wants_prefixes) prefix_ = prefix_hashes(prompt_.prompts.front(), prompt_.cache_salt);
  host.counters().requests.fetch_add(1, std::memory_order_relaxed);
}

RelayJob::~RelayJob() = default;

bool RelayJob::fresh() const {
  return num_delivered_ == 0 && !streaming_;
}

// ---- sending ----

void RelayJob::dispatch() {
  refused_by_.clear();
  if (!choose_decode()) return wait();
  send();
}

bool RelayJob::choose_decode() {
  const auto has_refused = [this](const Target& target) {
    return std::any_of(refused_by_.begin(), refused_by_.end(), [&](const TargetPtr& t) { return t.get() == &target; });
  };
  decode_.seat = host_.decode().choose({.num_prompt_tokens = num_prompt_tokens_,
                                        .cost = cost_,
                                        .prefix = prefix_,
                                        .rank = rank_,
                                        .excluded = has_refused});
  return static_cast<bool>(decode_.seat);
}

// Both halves leave at once.
void RelayJob::send() {
  sent_ = true;
  status_ = 0;
  response_ = {};
  transfer_id_.clear();
  const bool two_sided = choose_prefill();
  if (two_sided) transfer_id_ = host_.draw_id();
  api::RelayRequest request = make_request();
  if (two_sided) {
    api::RelayRequest prefill = request;
    prefill.relayed.transfer_id = transfer_id_;
    prefill.relayed.kv_transfer_params = R"({"do_remote_decode":true,"do_remote_prefill":false})";
    prefill.relayed.prefill_only = true;
    prefill.relayed.data_parallel_rank = prefill_.seat.view().rank;
    request.relayed.transfer_id = transfer_id_;
    request.relayed.kv_transfer_params = pull_params();
    open(prefill_, std::move(prefill));
  }
  request.relayed.data_parallel_rank = decode_.seat.view().rank;
  open(decode_, std::move(request));
}

// Whether a prefill rank computes the prompt. What is continued is computed where it is decoded: prompt and delivered
// tokens are one prompt there, and mostly cached.
bool RelayJob::choose_prefill() {
  prefill_.close();
  if (!host_.prefill() || num_failed_prefills_ >= kMaxFailedPrefills || num_delivered_ > 0) return false;
  if (prompt_.wants_prompt_logprobs || prompt_.has_kv_transfer_params) return false;
  if (decode_.seat.view().kv_transfer.empty()) return false;
  prefill_.seat = host_.prefill()->choose({.num_prompt_tokens = num_prompt_tokens_,
                                           .cost = num_prompt_tokens_,
                                           .prefix = prefix_,
                                           .rank = {},
                                           .excluded = {}});
  if (!prefill_.seat) return false;
  if (!pull_params().empty()) return true;
  prefill_.seat.leave();
  return false;
}

const std::string& RelayJob::pull_params() const {
  return host_.kv_peers().pull_params(prefill_.seat.view().kv_transfer, decode_.seat.view().kv_transfer);
}

api::RelayRequest RelayJob::make_request() const {
  api::RelayRequest out{.method = request_.method, .path = request_.path, .query = request_.query};
  out.headers.emplace_back("Content-Type", "application/json");
  out.headers.emplace_back("X-Request-Id", prompt_.request_id);
  for (const std::string_view name : kForwarded) {
    const std::string_view value = request_.header(name);
    if (!value.empty() && value.size() <= kMaxHeaderBytes) out.headers.emplace_back(name, value);
  }
  out.body = request_.body;
  out.tokenized = true;
  out.relayed.prompts = prompt_.prompts;
  out.relayed.seed = seed_;
  out.relayed.created = created_;
  if (num_delivered_ > 0) out.relayed.delivered = delivered_;
  return out;
}

void RelayJob::open(Leg& leg, api::RelayRequest request) {
  leg.stream = leg.seat.link().open(std::move(request), leg);
}

void RelayJob::wait() {
  if (!sent_) return fail("no engine takes requests now; retry in a moment");
  if (!deadline_) deadline_ = Clock::now() + kPatience;
  host_.wait_for_rank(*deadline_, [weak = weak_from_this()](bool timed_out) {
    const auto self = weak.lock();
    if (!self || self->ended_) return;
    if (timed_out)
      return self->fail("the api process of this request died and no other took it in time; send it again");
    self->dispatch();
  });
}

// ---- what comes back ----

void RelayJob::on_decode(const api::Piece& piece) {
  const auto self = shared_from_this();  // end() may let go of the last reference
  if (piece.end) decode_.stream = 0;
  if (piece.status != 0) {
    status_ = piece.status;
    if (status_ == 503 && refused()) return;
    if (streaming_ && status_ != 200)
      return fail(fmt::format("the request could not be continued: status {}", status_));
    begin(piece);
  }
  deadline_.reset();  // a rank has taken it
  take_tokens(piece);
  if (streaming_ && status_ == 200) {
    writer_->body().append(piece.bytes);
    writer_->commit();
  } else {
    response_.body.append(piece.bytes);
  }
  if (piece.end) finish();
}

void RelayJob::begin(const api::Piece& piece) {
  const bool is_stream = status_ == 200 && piece.content_type.starts_with("text/event-stream");
  if (streaming_) return;  // a second process goes on where the first one stopped
  if (is_stream) {
    streaming_ = true;
    writer_->begin_stream({{"X-Request-Id", prompt_.request_id}});
    return;
  }
  response_.status = status_;
  response_.content_type = piece.content_type;
  for (const auto& [name, value] : piece.headers) {
    if (!api::equals_ignoring_case(name, "X-Request-Id"))
      response_.headers.push_back({std::string(name), std::string(value)});
  }
  response_.headers.push_back({"X-Request-Id", prompt_.request_id});
}

void RelayJob::take_tokens(const api::Piece& piece) {
  for (const auto& tokens : piece.tokens) {
    if (tokens.choice < 0 || static_cast<size_t>(tokens.choice) >= delivered_.size()) continue;
    auto& delivered = delivered_[static_cast<size_t>(tokens.choice)];
    delivered.tokens.insert(delivered.tokens.end(), tokens.tokens.begin(), tokens.tokens.end());
    delivered.finished = delivered.finished || tokens.finished;
    num_delivered_ += tokens.tokens.size();
  }
  if (num_delivered_ > 0 && prefill_.stream == 0) prefill_.seat.leave();
}

// Nobody has seen anything of this answer, so another rank may do better. What was begun elsewhere waits for one.
bool RelayJob::refused() {
  refused_by_.push_back(decode_.seat.target());
  decode_.close();
  prefill_.close();
  if (refused_by_.size() < kMaxRefusals && choose_decode()) {
    send();
    return true;
  }
  if (fresh()) return false;  // the client gets this answer
  wait();
  return true;
}

void RelayJob::on_decode_lost(const std::string& why) {
  const auto self = shared_from_this();
  decode_.stream = 0;
  decode_.seat.leave();
  prefill_.close();
  if (++num_losses_ >= kMaxLosses) return fail("the api process of this request died too often: " + why);
  if (num_delivered_ > kMaxDelivered) {
    return fail(fmt::format("the api process of this request died: {}; its {} tokens are too many to go on from", why,
                            num_delivered_));
  }
  host_.counters().resubmissions.fetch_add(1, std::memory_order_relaxed);
  dispatch();
}

// The answer of a prefill is its KV cache; of its bytes only the status counts.
void RelayJob::on_prefill(const api::Piece& piece) {
  const auto self = shared_from_this();
  const bool failed = piece.status >= 400;
  if (piece.end) {
    prefill_.stream = 0;
    prefill_.seat.leave();
  }
  if (failed && piece.status < 500) num_failed_prefills_ = kMaxFailedPrefills;  // another rank would say the same
  if (failed) on_prefill_failed(fmt::format("status {}", piece.status));
}

// The decode rank waits for blocks that will not come. It is asked again, with another transfer or none.
void RelayJob::on_prefill_failed(const std::string& why) {
  const auto self = shared_from_this();
  prefill_.close();
  ++num_failed_prefills_;
  if (ended_ || !fresh()) return;  // the blocks had crossed
  spdlog::warn("request {}: prefill failed: {}", prompt_.request_id, why);
  host_.counters().prefill_fallbacks.fetch_add(1, std::memory_order_relaxed);
  decode_.close();
  dispatch();
}

// ---- endings ----

void RelayJob::on_gone() {
  if (ended_) return;
  host_.counters().disconnects.fetch_add(1, std::memory_order_relaxed);
  end();
}

void RelayJob::finish() {
  if (streaming_) {
    writer_->end_stream();
  } else {
    writer_->send(std::move(response_));
  }
  end();
}

// Before the first byte the client gets a proper status; after it, an event.
void RelayJob::fail(const std::string& why) {
  host_.counters().failures.fetch_add(1, std::memory_order_relaxed);
  const api::ApiError problem = api::overloaded(why);
  if (streaming_) {
    writer_->body() += "data: " + problem.json() + "\n\ndata: [DONE]\n\n";
    writer_->commit();
    writer_->end_stream();
  } else {
    api::HttpResponse response = problem.response();
    response.headers.push_back({"X-Request-Id", prompt_.request_id});
    writer_->send(std::move(response));
  }
  end();
}

void RelayJob::end() {
  ended_ = true;
  decode_.close();
  prefill_.close();
  ticket_ = {};
  const auto last = std::move(self_);  // may destroy this on the way out
}

}  // namespace manta::router
