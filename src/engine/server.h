// The engine process's door: accepts front-ends, checks epochs, passes requests to the Engine and its outputs back,
// and keeps the line to the coordinator. Runs on the process's main io_context, which never waits for a step, so that
// heartbeats go on while a step is stuck.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "engine/messages.h"

namespace boost::asio {
class io_context;
}

namespace manta::engine {

class Engine;

struct ServerOptions {
  int rank = 0;
  std::string listen;       // "unix:@…" or "tcp:host:0"
  std::string coordinator;  // its address
  std::string host;         // name of this node, for messages
  int group_size = 0;       // ranks of the expert-parallel group; 0: an engine for itself
  std::vector<std::pair<std::string, std::string>> shared_config;
  bool log_stats = true;                                      // a line every 10 s in which something ran
  std::function<void(const std::string& reason)> on_refused;  // the coordinator does not want us: final
};

class Server {
 public:
  static Result<std::unique_ptr<Server>> open(boost::asio::io_context& io, ServerOptions options);
  virtual ~Server() = default;

  // The engine is loaded: welcome the front-ends that wait, take requests. Any thread. The engine must outlive us.
  virtual void ready(Engine& engine, Welcome welcome) = 0;
  // The Engine's outputs; any thread.
  virtual void deliver(uint64_t client, Outputs&& outputs) = 0;
  // No new requests: tells front-ends and coordinator. On io's thread.
  virtual void drain() = 0;
  // Sends what is queued, leaves the group, then calls done. On io's thread.
  virtual void close(std::function<void()> done) = 0;
};

}  // namespace manta::engine
