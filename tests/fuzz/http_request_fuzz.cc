// Any bytes as what a client sends on one connection, cut into pieces: the connection must end, and every request that
// is well-formed enough must be answered once.
#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "api/http/connection.h"

namespace {

using namespace manta::api;

// Gives the input in pieces, then an end of file; takes all that is written.
class InputTransport : public Transport {
 public:
  InputTransport(asio::io_context& io, std::string input, size_t piece)
      : io_(io), input_(std::move(input)), piece_(piece) {}

  void handshake(OnDone done) override {
    asio::post(io_, [done = std::move(done)] { done({}); });
  }
  void read_some(asio::mutable_buffer buffer, OnIo done) override {
    const size_t n = std::min({piece_, input_.size() - pos_, buffer.size()});
    std::memcpy(buffer.data(), input_.data() + pos_, n);
    pos_ += n;
    const error_code ec = n == 0 ? error_code(asio::error::eof) : error_code();
    asio::post(io_, [done = std::move(done), ec, n] { done(ec, n); });
  }
  void write_some(asio::const_buffer buffer, OnIo done) override {
    asio::post(io_, [done = std::move(done), n = buffer.size()] { done({}, n); });
  }
  // Takes half, so that both ways of writing are walked.
  size_t write_now(std::string_view bytes, error_code&) override { return bytes.size() / 2; }
  void shutdown_send() override {}
  void close() override {}

 private:
  asio::io_context& io_;
  std::string input_;
  size_t pos_ = 0;
  size_t piece_;
};

class EchoService : public HttpService {
 public:
  std::optional<HttpResponse> refuse(const HttpRequest& head) override {
    if (head.path == "/refuse") return HttpResponse{.status = 404};
    return {};
  }
  void handle(HttpRequest request, ResponseWriterPtr writer) override {
    if (request.path != "/stream") return writer->send({.body = request.body});
    writer->begin_stream({});
    writer->body() += request.body;
    writer->commit();
    writer->end_stream();
  }
  std::vector<HttpHeader> common_headers(const HttpRequest& head) override {
    return {{"X-Request-Id", std::string(head.header("X-Request-Id"))}};
  }
  void on_response(int status) override {
    if (status < 200 || status > 599) std::abort();
  }
  HttpResponse bad_request(int status, const std::string& why) override { return {.status = status, .body = why}; }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  asio::io_context io(1);
  FlushQueue flush_queue(io);
  EchoService service;
  const HttpLimits limits{.max_header_bytes = 2048, .max_header_count = 16, .max_body_bytes = 4096};
  const ConnectionHost host{io, flush_queue, service, limits};
  bool ended = false;
  std::string input(reinterpret_cast<const char*>(data) + 1, size - 1);
  auto transport = std::make_unique<InputTransport>(io, std::move(input), size_t{1} + data[0]);
  const auto connection = start_connection(host, std::move(transport), [&ended] { ended = true; });
  io.run();
  if (!ended) std::abort();
  return 0;
}
