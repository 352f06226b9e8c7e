// One event loop of the server: a thread with its own generator, parser, random numbers, metrics and connections.
// Nothing here is shared with another loop but what LoopContext marks so.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <unordered_map>

#include "api/front.h"
#include "api/http/connection.h"
#include "api/loop_context.h"
#include "api/relay/server.h"
#include "api/routes.h"

namespace manta::api {

// What all loops share, read-only or atomic.
struct ServerState {
  ServerState(const Settings& s, ServedModel m)
      : settings(s),
        model(std::move(m)),
        admission(s.max_num_queued_reqs),
        metrics(model.names.front(), static_cast<int>(s.data_parallel_size)) {}

  const Settings settings;
  const ServedModel model;
  Admission admission;
  Metrics metrics;
  HttpLimits limits;
  OffloadPool offload_pool;
  std::atomic<bool> draining{false};
};

// For ids that nobody can guess and that differ from start to start.
std::mt19937_64 unpredictable();

class EventLoop : private HttpService {
 public:
  EventLoop(ServerState& state, int index);
  ~EventLoop() override;

  // Before run(): the generator lives on this loop.
  void set_generator(std::unique_ptr<Generator> generator);
  void set_front(const FrontFactory& make_front);
  // Before set_generator(), which announces the address that this returns.
  Result<std::string> listen_for_routers(const std::string& address);
  void run();  // starts the thread

  asio::io_context& io() { return io_; }
  size_t num_connections() const { return num_connections_.load(std::memory_order_relaxed); }

  // Any thread.
  void add_connection(std::unique_ptr<Transport> transport);
  void reserve_connection() { num_connections_.fetch_add(1, std::memory_order_relaxed); }
  // Connections that are open now end, with their response in progress; on_done runs when they have.
  void drain(std::function<void()> on_done);
  void abort();  // all connections end now
  void stop();   // no connection is taken any more, all end, then the thread; waits for it

 private:
  using Connections = std::unordered_map<uint64_t, std::shared_ptr<Connection>>;

  std::optional<HttpResponse> refuse(const HttpRequest& head) override;
  void handle(HttpRequest request, ResponseWriterPtr writer) override;
  std::vector<HttpHeader> common_headers(const HttpRequest& head) override;
  void on_response(int status) override;
  HttpResponse bad_request(int status, const std::string& why) override;

  void on_connection_end(uint64_t id);
  void check_drained();
  void leave();
  std::string_view route_path(const HttpRequest& request) const;

  ServerState& state_;
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  FlushQueue flush_queue_{io_};
  std::mt19937_64 random_, ids_;
  JsonParser json_;
  Offload offload_{state_.offload_pool, io_};
  MetricsShard& shard_;
  std::unique_ptr<Generator> generator_;
  std::optional<LoopContext> context_;
  std::unique_ptr<Front> front_;        // null: the routes' own handlers answer
  std::unique_ptr<RelayServer> relay_;  // null: no router may come
  const int index_;
  const ConnectionHost host_;

  std::atomic<size_t> num_connections_{0};
  uint64_t last_connection_ = 0;
  Connections connections_;
  size_t num_to_drain_ = 0;  // of the connections that were open when draining began
  uint64_t last_before_drain_ = 0;
  std::function<void()> on_drained_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace manta::api
