// The OpenAI-compatible server of a deployment: N share-nothing event-loop threads behind one port.
//
//   auto server = ApiServer::start(settings, engine_generators(coordinator, ranks, [] {}));
//   print(server->url());
//   …                       // SIGTERM
//   server->drain();        // new requests get 503, running ones go on
//   server->join();         // all done, or shutdown_timeout is over
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "api/front.h"
#include "api/generator.h"
#include "base/result.h"
#include "base/settings.h"

namespace manta::api {

class ApiServer {
 public:
  // Loads the tokenizer and templates, binds, starts the threads; answers /health with 503 until an engine is ready.
  // kInvalidArgument, kNotFound: a file of the model or a certificate. kUnavailable: the port is taken.
  // relay_address: where routers are taken (api/relay/messages.h: loop_address); empty: nowhere. make_front: see
  // api/front.h.
  static Result<std::unique_ptr<ApiServer>> start(const Settings& settings, GeneratorFactory make_generator,
                                                  const std::string& relay_address = "",
                                                  const FrontFactory& make_front = {});
  virtual ~ApiServer() = default;  // cuts off what is still running

  virtual uint16_t port() const = 0;           // 0 on a unix socket
  virtual std::string url() const = 0;         // "http://127.0.0.1:8000"
  virtual void drain() = 0;                    // returns at once; any thread, any number of times
  virtual void abort() = 0;                    // cuts off every connection; any thread, before join() has returned
  virtual void join() = 0;                     // after drain(): returns when everything has ended
  virtual size_t num_connections() const = 0;  // open now; any thread
};

// The whole life of the `manta api` process: starts the server, calls on_ready with its URL once every loop can send
// requests to every engine, serves until SIGTERM or SIGINT, drains, returns. A second signal cuts off what still runs.
Status run_api_server(const Settings& settings, const std::string& coordinator, const std::string& relay_address,
                      const std::function<void(const std::string& url)>& on_ready);

// The same for any server: make_server gets a function that each of its loops calls once when it is complete.
using ServerFactory = std::function<Result<std::unique_ptr<ApiServer>>(const std::function<void()>& on_loop_complete)>;
Status run_server(const ServerFactory& make_server, int num_loops,
                  const std::function<void(const std::string& url)>& on_ready);

}  // namespace manta::api
