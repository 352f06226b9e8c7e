#include "api/server.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <condition_variable>
#include <future>
#include <mutex>

#include "api/event_loop.h"
#include "api/http/listener.h"
#include "api/http/tls.h"
#include "api/relay/messages.h"
#include "base/log.h"
#include "cluster/node_plan.h"

namespace manta::api {
namespace {

// Descriptors kept for engines, files and logs.
constexpr size_t kSpareDescriptors = 128;

// As many descriptors as the system lets this process have; each stream needs one.
size_t raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
  (void)::getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<size_t>(limit.rlim_cur);
}

HttpLimits limits_from(const Settings& settings) {
  HttpLimits limits;
  limits.max_header_bytes = static_cast<size_t>(settings.h11_max_incomplete_event_size);
  limits.max_header_count = static_cast<size_t>(settings.h11_max_header_count);
  limits.max_body_bytes = static_cast<size_t>(settings.max_request_body_size);
  limits.idle_timeout = std::chrono::seconds(settings.http_timeout_keep_alive);
  return limits;
}

Result<std::shared_ptr<TlsContext>> make_tls(const Settings& settings) {
  if (!settings.ssl_certfile && !settings.ssl_keyfile) return std::shared_ptr<TlsContext>();
  if (!settings.ssl_certfile || !settings.ssl_keyfile) {
    return error(ErrorCode::kInvalidArgument, "ssl_certfile and ssl_keyfile go together: give both, or neither");
  }
  return TlsContext::create({.keyfile = *settings.ssl_keyfile,
                             .certfile = *settings.ssl_certfile,
                             .ca_certs = settings.ssl_ca_certs,
                             .cert_reqs = static_cast<int>(settings.ssl_cert_reqs),
                             .ciphers = settings.ssl_ciphers});
}

class Server : public ApiServer {
 public:
  Server(const Settings& settings, ServedModel model) : state_(settings, std::move(model)) {
    state_.limits = limits_from(settings);
    max_connections_ = std::max<size_t>(raise_descriptor_limit(), kSpareDescriptors * 2) - kSpareDescriptors;
  }
  ~Server() override { finish(); }

  Status open(const GeneratorFactory& make_generator, const std::string& relay_address, const FrontFactory& make_front);

  uint16_t port() const override { return listener_->port(); }
  std::string url() const override;
  void drain() override { begin_drain(); }
  void join() override;
  size_t num_connections() const override;

  void abort() override {
    for (const auto& loop : loops_) loop->abort();
  }

 private:
  void begin_drain();
  void finish();
  EventLoop& least_busy();
  void on_accept(StreamSocket socket);

  ServerState state_;
  size_t max_connections_ = 0;
  std::shared_ptr<TlsContext> tls_;
  std::vector<std::unique_ptr<EventLoop>> loops_;
  std::unique_ptr<Listener> listener_;
  EventLoop* next_ = nullptr;  // where the connection that is being accepted goes

  std::mutex mutex_;
  std::condition_variable drained_;
  size_t num_drained_ = 0;
  bool running_ = false;
};

Status Server::open(const GeneratorFactory& make_generator, const std::string& relay_address,
                    const FrontFactory& make_front) {
  MANTA_ASSIGN(tls_, make_tls(state_.settings));
  const int num_loops = static_cast<int>(state_.settings.api_server_count.value_or(1));
  for (int i = 0; i < num_loops; ++i) {
    auto& loop = loops_.emplace_back(std::make_unique<EventLoop>(state_, i));
    std::string bound;
    if (!relay_address.empty()) {
      MANTA_ASSIGN(const std::string wanted, loop_address(relay_address, i));
      MANTA_ASSIGN(bound, loop->listen_for_routers(wanted));
    }
    loop->set_generator(make_generator(loop->io(), i, bound));
    if (make_front) loop->set_front(make_front);
  }
  MANTA_ASSIGN(listener_, Listener::open(loops_.front()->io(), {.host = state_.settings.host.value_or(""),
                                                                .port = static_cast<uint16_t>(state_.settings.port),
                                                                .unix_path = state_.settings.uds}));
  listener_->start(
      [this]() -> asio::io_context& {
        next_ = &least_busy();
        return next_->io();
      },
      [this](StreamSocket socket) { on_accept(std::move(socket)); });
  for (const auto& loop : loops_) loop->run();
  running_ = true;
  return {};
}

EventLoop& Server::least_busy() {
  EventLoop* best = loops_.front().get();
  for (const auto& loop : loops_) {
    if (loop->num_connections() < best->num_connections()) best = loop.get();
  }
  return *best;
}

void Server::on_accept(StreamSocket socket) {
  if (num_connections() >= max_connections_) return;  // closed at once: there is no room even to say so
  next_->reserve_connection();
  next_->add_connection(tls_ ? tls_->wrap(std::move(socket)) : make_plain_transport(std::move(socket)));
}

size_t Server::num_connections() const {
  size_t sum = 0;
  for (const auto& loop : loops_) sum += loop->num_connections();
  return sum;
}

std::string Server::url() const {
  if (state_.settings.uds) return "unix:" + *state_.settings.uds;
  std::string host = state_.settings.host.value_or("127.0.0.1");
  if (host == "0.0.0.0" || host == "::") host = "127.0.0.1";
  return fmt::format("{}://{}:{}{}", tls_ ? "https" : "http", cluster::bracketed(host), port(),
                     state_.settings.root_path);
}

void Server::begin_drain() {
  if (state_.draining.exchange(true)) return;
  for (const auto& loop : loops_) {
    loop->drain([this] {
      const std::lock_guard lock(mutex_);
      ++num_drained_;
      drained_.notify_all();
    });
  }
}

void Server::join() {
  const auto all_drained = [this] { return num_drained_ == loops_.size(); };
  {
    std::unique_lock lock(mutex_);
    const auto timeout = std::chrono::seconds(state_.settings.shutdown_timeout);
    if (timeout.count() == 0) {
      drained_.wait(lock, all_drained);
    } else if (!drained_.wait_for(lock, timeout, all_drained)) {
      spdlog::warn("shutdown_timeout of {} s is over: cutting off {} connections", timeout.count(), num_connections());
    }
  }
  finish();
}

// The listening socket stays open while old streams end, so that new clients are told 503 instead of nothing. It
// closes before the loops stop: a loop that has stopped takes no connection.
void Server::finish() {
  if (!std::exchange(running_, false)) return;
  std::promise<void> closed;
  asio::post(loops_.front()->io(), [&] {
    listener_->close();
    closed.set_value();
  });
  closed.get_future().wait();
  for (const auto& loop : loops_) loop->stop();
}

}  // namespace

Result<std::unique_ptr<ApiServer>> ApiServer::start(const Settings& settings, GeneratorFactory make_generator,
                                                    const std::string& relay_address, const FrontFactory& make_front) {
  MANTA_ASSIGN(ServedModel model, load_served_model(settings));
  auto server = std::make_unique<Server>(settings, std::move(model));
  MANTA_TRY(server->open(make_generator, relay_address, make_front));
  return std::unique_ptr<ApiServer>(std::move(server));
}

Status run_server(const ServerFactory& make_server, int num_loops,
                  const std::function<void(const std::string& url)>& on_ready) {
  // Before the server's threads, so that they inherit nothing that could take the signals first.
  asio::io_context signals_io;
  asio::signal_set signals(signals_io, SIGTERM, SIGINT);
  // Loops complete on their own threads, the first perhaps before start() returns: count them on this one.
  std::unique_ptr<ApiServer> server;
  int num_incomplete = num_loops;
  const auto on_complete = [&] {
    asio::post(signals_io, [&] {
      if (--num_incomplete == 0) on_ready(server->url());
    });
  };
  MANTA_ASSIGN(server, make_server(on_complete));
  std::thread joiner;  // waits beside this loop, so that a second signal is heard
  signals.async_wait([&](error_code, int) {
    spdlog::info("draining: {} connections", server->num_connections());
    server->drain();
    signals.async_wait([&](error_code ec, int) {
      if (!ec) server->abort();
    });
    joiner = std::thread([&] {
      server->join();
      asio::post(signals_io, [&] { signals.cancel(); });
    });
  });
  signals_io.run();
  joiner.join();
  return {};
}

Status run_api_server(const Settings& settings, const std::string& coordinator, const std::string& relay_address,
                      const std::function<void(const std::string& url)>& on_ready) {
  const cluster::NodePlan plan = cluster::plan_node(settings);
  const engine::RankRange ranks{plan.first_served, plan.num_served};
  const auto make_server = [&](const std::function<void()>& on_loop_complete) {
    return ApiServer::start(settings, engine_generators(coordinator, ranks, on_loop_complete), relay_address);
  };
  return run_server(make_server, static_cast<int>(settings.api_server_count.value_or(1)), on_ready);
}

}  // namespace manta::api
