#include <utility>  // before Beast, which forgets it in C++20

#include "manta/http/event_stream.h"

#include <fmt/format.h>

#include <array>
#include <boost/asio.hpp>
#include <boost/beast.hpp>
#include <limits>
#include <nlohmann/json.hpp>

namespace manta::http_client {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::awaitable;
using asio::use_awaitable;

namespace {

// Cuts a server-sent-event stream into its data lines.
class EventReader {
 public:
  template <typename OnData>
  void feed(std::string_view bytes, OnData on_data) {
    buffer_.append(bytes);
    size_t begin = 0;
    for (size_t end; (end = buffer_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const std::string_view line(buffer_.data() + begin, end - begin);
      if (line.starts_with("data: ")) on_data(line.substr(6));
    }
    buffer_.erase(0, begin);
  }

 private:
  std::string buffer_;
};

template <typename Body>
void set_common_fields(http::request<Body>& message, const ServerAddress& server) {
  message.set(http::field::host, server.host);
  if (!server.api_key.empty()) message.set(http::field::authorization, "Bearer " + server.api_key);
}

}  // namespace

Result<ServerAddress> parse_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) {
    return error(ErrorCode::kInvalidArgument, fmt::format("--url {}: must start with http://", url));
  }
  std::string rest = url.substr(kScheme.size());
  rest = rest.substr(0, rest.find('/'));
  const size_t colon = rest.rfind(':');
  ServerAddress server;
  server.host = rest.substr(0, colon);
  server.port = colon == std::string::npos ? "80" : rest.substr(colon + 1);
  return server;
}

struct Connection::State {
  State(asio::io_context& io, const ServerAddress& server) : stream(io), server(server) {}

  awaitable<void> open() {
    asio::ip::tcp::resolver resolver(stream.get_executor());
    const auto found = co_await resolver.async_resolve(server.host, server.port, use_awaitable);
    co_await stream.async_connect(found, use_awaitable);
    stream.socket().set_option(asio::ip::tcp::no_delay(true));
  }

  awaitable<StreamEnd> read_answer(const std::function<void(std::string_view)>& on_data) {
    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(std::numeric_limits<uint64_t>::max());  // a stream has no length
    co_await http::async_read_header(stream, buffer, parser, use_awaitable);
    StreamEnd end;
    end.status = static_cast<int>(parser.get().result_int());
    std::array<char, 16384> chunk;
    EventReader events;
    while (!parser.is_done()) {
      parser.get().body().data = chunk.data();
      parser.get().body().size = chunk.size();
      beast::error_code ec;
      co_await http::async_read_some(stream, buffer, parser, asio::redirect_error(use_awaitable, ec));
      if (ec && ec != http::error::need_buffer) throw beast::system_error(ec);
      const std::string_view got(chunk.data(), chunk.size() - parser.get().body().size);
      if (end.status != 200) {
        end.refusal.append(got);
        continue;
      }
      events.feed(got, [&](std::string_view data) {
        if (data == "[DONE]") {
          end.done = true;
        } else {
          on_data(data);
        }
      });
    }
    open_now = parser.keep_alive();
    if (!open_now) stream.close();
    co_return end;
  }

  beast::tcp_stream stream;
  ServerAddress server;
  bool open_now = false;
};

Connection::Connection(asio::io_context& io, const ServerAddress& server)
    : state_(std::make_unique<State>(io, server)) {}
Connection::~Connection() = default;

awaitable<StreamEnd> Connection::post(std::string target, std::string body,
                                      std::function<void(std::string_view)> on_data) {
  State& s = *state_;
  if (!s.open_now) co_await s.open();
  s.open_now = false;  // until the answer is complete; an exception below leaves it so
  http::request<http::string_body> message(http::verb::post, target, 11, std::move(body));
  set_common_fields(message, s.server);
  message.set(http::field::content_type, "application/json");
  message.prepare_payload();
  co_await http::async_write(s.stream, message, use_awaitable);
  co_return co_await s.read_answer(on_data);
}

Result<std::string> get(const ServerAddress& server, const std::string& target) {
  try {
    asio::io_context io;
    beast::tcp_stream stream(io);
    stream.connect(asio::ip::tcp::resolver(io).resolve(server.host, server.port));
    http::request<http::empty_body> request(http::verb::get, target, 11);
    set_common_fields(request, server);
    http::write(stream, request);
    beast::flat_buffer buffer;
    http::response<http::string_body> response;
    http::read(stream, buffer, response);
    if (response.result() == http::status::ok) return response.body();
    return error(ErrorCode::kUnavailable,
                 fmt::format("GET {}: HTTP {}: {}", target, response.result_int(), response.body().substr(0, 200)));
  } catch (const std::exception& e) {
    return error(ErrorCode::kUnavailable,
                 fmt::format("http://{}:{}{}: {}; is the server running?", server.host, server.port, target, e.what()));
  }
}

Result<std::string> first_model(const ServerAddress& server) {
  MANTA_ASSIGN(const std::string body, get(server, "/v1/models"));
  const auto models = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (models.is_object() && models.contains("data") && models["data"].is_array() && !models["data"].empty()) {
    return models["data"][0].value("id", "");
  }
  return error(ErrorCode::kUnavailable, "/v1/models lists no model; name one with --model");
}

}  // namespace manta::http_client
