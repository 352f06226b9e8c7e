// A server that does nothing but HTTP and SSE: the baseline of bench/frontend.py. Connections, parser and writer are
// the product's; a request is not looked at and is answered at once with one chunk, its usage and the end of the
// stream.
//   manta_null_sse_server          prints its URL, serves until it is killed
#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "api/http/connection.h"
#include "api/http/listener.h"

namespace {

using namespace manta::api;  // NOLINT

constexpr std::string_view kEvents =
    "data: "
    "{\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":0,\"model\":\"null\",\"choices\":[{\"index\":0,"
    "\"text\":\" a\",\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n"
    "data: {\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":0,\"model\":\"null\",\"choices\":[],\"usage\":"
    "{\"prompt_tokens\":1,\"total_tokens\":2,\"completion_tokens\":1}}\n\n"
    "data: [DONE]\n\n";

class NullService : public HttpService {
 public:
  std::optional<HttpResponse> refuse(const HttpRequest&) override { return {}; }
  void handle(HttpRequest, ResponseWriterPtr writer) override {
    writer->begin_stream({});
    writer->body() += kEvents;
    writer->commit();
    writer->end_stream();
  }
  std::vector<HttpHeader> common_headers(const HttpRequest&) override { return {}; }
  void on_response(int) override {}
  HttpResponse bad_request(int status, const std::string& why) override { return {.status = status, .body = why}; }
};

}  // namespace

int main() {
  asio::io_context io(1);
  FlushQueue flush_queue(io);
  NullService service;
  const HttpLimits limits;
  const ConnectionHost host{io, flush_queue, service, limits};
  auto listener = Listener::open(io, {.host = "127.0.0.1"});
  if (!listener.ok()) {
    fmt::print(stderr, "null_sse_server: {}\n", listener.error().message);
    return 1;
  }
  std::unordered_map<uint64_t, std::shared_ptr<Connection>> connections;
  uint64_t last = 0;
  (*listener)->start([&io]() -> asio::io_context& { return io; },
                     [&](StreamSocket socket) {
                       const uint64_t id = ++last;
                       connections[id] = start_connection(host, make_plain_transport(std::move(socket)),
                                                          [&connections, id] { connections.erase(id); });
                     });
  fmt::print("http://127.0.0.1:{}\n", (*listener)->port());
  std::fflush(stdout);
  io.run();
  return 0;
}
