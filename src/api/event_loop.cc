#include "api/event_loop.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "api/auth.h"
#include "api/cors.h"
#include "api/openai/request_id.h"
#include "base/log.h"
#include "cluster/node_plan.h"

namespace manta::api {
namespace {

std::mt19937_64 seeded(int64_t seed, int index) {
  std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(index)};
  return std::mt19937_64(sequence);
}

HttpResponse with_close(HttpResponse response) {
  response.close = true;
  return response;
}

bool is_json(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  const size_t end = type.find_last_not_of(' ');
  return equals_ignoring_case(type.substr(0, end == std::string_view::npos ? 0 : end + 1), "application/json");
}

}  // namespace

std::mt19937_64 unpredictable() {
  std::random_device device;
  std::seed_seq sequence{device(), device(), device(), device()};
  return std::mt19937_64(sequence);
}

EventLoop::EventLoop(ServerState& state, int index)
    : state_(state),
      random_(seeded(state.settings.seed, index)),
      ids_(unpredictable()),
      shard_(state.metrics.add_shard()),
      index_(index),
      host_{io_, flush_queue_, *this, state.limits} {}

EventLoop::~EventLoop() {
  stop();
}

void EventLoop::set_generator(std::unique_ptr<Generator> generator) {
  generator_ = std::move(generator);
  generator_->on_resubmit([this](int lost_rank, engine::ResubmitReason reason) {
    shard_.of(lost_rank).resubmitted[static_cast<size_t>(reason)].add(1);
  });
  context_.emplace(LoopContext{state_.settings, state_.model, state_.admission, state_.metrics, shard_, *generator_,
                               random_, ids_, json_, offload_, state_.draining});
}

void EventLoop::set_front(const FrontFactory& make_front) {
  front_ = make_front(io_, index_, *context_);
}

Result<std::string> EventLoop::listen_for_routers(const std::string& address) {
  RelayOptions options;
  options.address = address;
  options.max_body_bytes = state_.limits.max_body_bytes;
  options.first_rank = cluster::plan_node(state_.settings).first_served;
  options.generator = [this] { return generator_.get(); };
  options.on_idle = [this] { check_drained(); };
  MANTA_ASSIGN(relay_, RelayServer::open(io_, flush_queue_, *this, std::move(options)));
  return relay_->address();
}

void EventLoop::run() {
  thread_ = std::thread([this] { io_.run(); });
}

void EventLoop::add_connection(std::unique_ptr<Transport> transport) {
  // std::function wants copyable things.
  auto shared = std::make_shared<std::unique_ptr<Transport>>(std::move(transport));
  asio::post(io_, [this, shared] {
    if (stopping_) {
      num_connections_.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
    const uint64_t id = ++last_connection_;
    connections_[id] = start_connection(host_, std::move(*shared), [this, id] { on_connection_end(id); });
  });
}

void EventLoop::on_connection_end(uint64_t id) {
  connections_.erase(id);
  num_connections_.fetch_sub(1, std::memory_order_relaxed);
  if (on_drained_ && id <= last_before_drain_) {
    --num_to_drain_;
    check_drained();
  }
  if (stopping_ && connections_.empty()) leave();
}

void EventLoop::drain(std::function<void()> on_done) {
  asio::post(io_, [this, on_done = std::move(on_done)] {
    num_to_drain_ = connections_.size();
    last_before_drain_ = last_connection_;
    on_drained_ = on_done;
    if (relay_) relay_->drain();
    for (const auto& [id, connection] : connections_) connection->drain();
    check_drained();
  });
}

void EventLoop::check_drained() {
  if (!on_drained_ || num_to_drain_ > 0 || (relay_ && relay_->num_streams() > 0)) return;
  std::exchange(on_drained_, nullptr)();
}

void EventLoop::abort() {
  asio::post(io_, [this] {
    if (relay_) relay_->abort();
    for (const auto& [id, connection] : connections_) connection->abort();
  });
}

void EventLoop::stop() {
  if (!thread_.joinable()) return;
  asio::post(io_, [this] {
    stopping_ = true;
    if (relay_) relay_->abort();
    if (connections_.empty()) return leave();
    for (const auto& [id, connection] : connections_) connection->abort();
  });
  thread_.join();
}

// The generator's own work would keep io_ running, so it goes first; posted, so that requests whose connections have
// just ended let go of it before.
void EventLoop::leave() {
  asio::post(io_, [this] {
    relay_.reset();
    front_.reset();
    context_.reset();
    generator_.reset();
    work_.reset();
  });
}

std::string_view EventLoop::route_path(const HttpRequest& request) const {
  std::string_view path = request.path;
  const std::string& root = state_.settings.root_path;
  if (!root.empty() && path.starts_with(root) && path.size() > root.size()) path.remove_prefix(root.size());
  return path;
}

std::optional<HttpResponse> EventLoop::refuse(const HttpRequest& head) {
  const std::string_view path = route_path(head);
  const Match match = find_route(head.method, path);
  if (auto preflight = answer_preflight(state_.settings, head, match.allow)) return preflight;
  std::optional<HttpResponse> refusal = check_api_key(state_.settings.api_key, path, head.header("Authorization"));
  if (!refusal && match.problem) {
    refusal = match.problem->response();
    if (!match.allow.empty()) refusal->headers.push_back({"Allow", match.allow});
  }
  if (!refusal && match.route->method == "POST" && match.route->path != "/ping" &&
      !is_json(head.header("Content-Type"))) {
    refusal = bad_shape("Content-Type", "Unsupported Media Type: Only 'application/json' is allowed").response();
  }
  if (!refusal && match.route->generates && state_.draining.load(std::memory_order_relaxed)) {
    shard_.admission_rejections[static_cast<size_t>(Rejection::kDraining)].add(1);
    refusal = with_close(overloaded("The server is shutting down.").response());
  }
  return refusal;
}

void EventLoop::handle(HttpRequest request, ResponseWriterPtr writer) {
  const Match match = find_route(request.method, route_path(request));
  if (front_ && front_->answer(*match.route, request, writer)) return;
  match.route->handler(*context_, std::move(request), writer);
}

std::vector<HttpHeader> EventLoop::common_headers(const HttpRequest& head) {
  std::vector<HttpHeader> headers = cors_headers(state_.settings, head);
  if (state_.settings.enable_request_id_headers) {
    const std::string_view given = head.header("X-Request-Id");
    headers.push_back({"X-Request-Id", given.empty() ? random_id(ids_) : std::string(given)});
  }
  return headers;
}

void EventLoop::on_response(int status) {
  shard_.http_requests[static_cast<size_t>(status / 100)].add(1);
}

HttpResponse EventLoop::bad_request(int status, const std::string& why) {
  return ApiError{.status = status, .type = "Bad Request", .message = why}.response();
}

}  // namespace manta::api
