#include "model/http_get.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <cctype>
#include <exception>
#include <limits>
#include <optional>
#include <vector>

namespace manta::model {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

constexpr int kMaxRedirects = 5;
constexpr uint32_t kMaxHeaderBytes = 64 << 10;
constexpr size_t kPieceBytes = 256 << 10;

struct Url {
  bool tls = false;
  std::string host, port, target;
  std::string origin() const { return fmt::format("{}://{}:{}", tls ? "https" : "http", host, port); }
};

Result<Url> parse_url(const std::string& text) {
  const auto bad = [&](const char* why) {
    return error(ErrorCode::kInvalidArgument, fmt::format("address '{}': {}", text.substr(0, 200), why));
  };
  Url url;
  size_t at = 0;
  if (text.rfind("https://", 0) == 0) {
    url.tls = true;
    at = 8;
  } else if (text.rfind("http://", 0) == 0) {
    at = 7;
  } else {
    return bad("must begin with http:// or https://");
  }
  if (std::any_of(text.begin(), text.end(), [](unsigned char c) { return c <= 0x20 || c == 0x7f; })) {
    return bad("has a space or control character");
  }
  const size_t path = std::min(text.find_first_of("/?#", at), text.size());
  std::string authority = text.substr(at, path - at);
  if (authority.find('@') != std::string::npos) return bad("user names are not taken; use HF_TOKEN");
  // [::1]:80 or host:80
  const size_t colon = authority.find(':', authority.empty() || authority[0] != '[' ? 0 : authority.find(']'));
  url.host = authority.substr(0, colon);
  url.port = colon == std::string::npos ? (url.tls ? "443" : "80") : authority.substr(colon + 1);
  if (url.host.size() > 2 && url.host.front() == '[') url.host = url.host.substr(1, url.host.size() - 2);
  if (url.host.empty() || url.port.empty()) return bad("has no host");
  url.target = text.substr(path, text.find('#', path) - path);
  if (url.target.empty() || url.target[0] != '/') url.target.insert(0, "/");
  return url;
}

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

HttpHead head_of(const http::response_header<>& header) {
  HttpHead head;
  head.status = static_cast<int>(header.result_int());
  for (const auto& field : header) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    head.headers[name] = std::string(field.value());
  }
  return head;
}

// What a request came to: an error of ours, or where to go next, or done.
struct Outcome {
  Status status;
  std::string location;  // not empty: a redirect
};

class Request {
 public:
  Request(const HttpGet& get, const Url& url, bool authorize, const HttpHeadFn& on_head, const HttpBodyFn& on_body)
      : get_(get), url_(url), authorize_(authorize), on_head_(on_head), on_body_(on_body) {}

  asio::awaitable<Outcome> run() {
    auto executor = co_await asio::this_coro::executor;
    tcp::resolver resolver(executor);
    const auto addresses = co_await resolver.async_resolve(url_.host, url_.port, asio::use_awaitable);
    beast::tcp_stream plain(executor);
    plain.expires_after(get_.timeout);
    co_await plain.async_connect(addresses, asio::use_awaitable);
    if (!url_.tls) co_return co_await exchange(plain, plain);
    asio::ssl::context tls(asio::ssl::context::tls_client);
    tls.set_default_verify_paths();
    tls.set_verify_mode(asio::ssl::verify_peer);
    beast::ssl_stream<beast::tcp_stream> stream(std::move(plain), tls);
    stream.set_verify_callback(asio::ssl::host_name_verification(url_.host));
    SSL_set_tlsext_host_name(stream.native_handle(), url_.host.c_str());
    co_await stream.async_handshake(asio::ssl::stream_base::client, asio::use_awaitable);
    co_return co_await exchange(stream, beast::get_lowest_layer(stream));
  }

 private:
  http::request<http::empty_body> message() const {
    http::request<http::empty_body> request(http::verb::get, url_.target, 11);
    const bool is_default = url_.port == (url_.tls ? "443" : "80");
    request.set(http::field::host, is_default ? url_.host : url_.host + ":" + url_.port);
    request.set(http::field::user_agent, "manta");
    request.set(http::field::accept_encoding, "identity");
    if (authorize_ && !get_.authorization.empty()) request.set(http::field::authorization, get_.authorization);
    if (get_.first_byte > 0) request.set(http::field::range, fmt::format("bytes={}-", get_.first_byte));
    request.keep_alive(false);
    return request;
  }

  template <typename Stream>
  asio::awaitable<Outcome> exchange(Stream& stream, beast::tcp_stream& clock) {
    clock.expires_after(get_.timeout);
    auto request = message();
    co_await http::async_write(stream, request, asio::use_awaitable);
    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.header_limit(kMaxHeaderBytes);
    parser.body_limit(std::numeric_limits<uint64_t>::max());  // on_body decides
    co_await http::async_read_header(stream, buffer, parser, asio::use_awaitable);
    const HttpHead head = head_of(parser.get().base());
    if (is_redirect(head.status)) {
      const auto location = head.headers.find("location");
      if (location != head.headers.end()) co_return Outcome{{}, location->second};
    }
    if (Status status = on_head_(head); !status.ok()) co_return Outcome{status, ""};
    std::vector<char> piece(kPieceBytes);
    while (!parser.is_done()) {
      parser.get().body().data = piece.data();
      parser.get().body().size = piece.size();
      clock.expires_after(get_.timeout);
      boost::system::error_code failed;
      co_await http::async_read_some(stream, buffer, parser, asio::redirect_error(asio::use_awaitable, failed));
      if (failed && failed != http::error::need_buffer) throw boost::system::system_error(failed);
      const size_t n = piece.size() - parser.get().body().size;
      if (n == 0) continue;
      if (Status status = on_body_({piece.data(), n}); !status.ok()) co_return Outcome{status, ""};
    }
    co_return Outcome{};
  }

  const HttpGet& get_;
  const Url& url_;
  const bool authorize_;
  const HttpHeadFn& on_head_;
  const HttpBodyFn& on_body_;
};

Result<Outcome> request_once(const HttpGet& get, const Url& url, bool authorize, const HttpHeadFn& on_head,
                             const HttpBodyFn& on_body) {
  std::optional<Outcome> outcome;
  std::string failure = "no answer";
  asio::io_context io(1);
  Request request(get, url, authorize, on_head, on_body);
  asio::co_spawn(io, request.run(), [&](const std::exception_ptr& thrown, Outcome result) {
    if (!thrown) {
      outcome = std::move(result);
      return;
    }
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& e) {
      failure = e.what();
    }
  });
  io.run();
  if (outcome) return *outcome;
  return error(ErrorCode::kUnavailable, fmt::format("{}: {}", url.origin(), failure));
}

}  // namespace

Status http_get(const HttpGet& get, const HttpHeadFn& on_head, const HttpBodyFn& on_body) {
  MANTA_ASSIGN(Url url, parse_url(get.url));
  const std::string first_host = url.host;
  for (int i = 0; i <= kMaxRedirects; ++i) {
    MANTA_ASSIGN(const Outcome outcome, request_once(get, url, url.host == first_host, on_head, on_body));
    if (outcome.location.empty()) return outcome.status;
    const bool was_tls = url.tls;
    MANTA_ASSIGN(url, parse_url(outcome.location[0] == '/' ? url.origin() + outcome.location : outcome.location));
    if (was_tls && !url.tls) {
      return error(ErrorCode::kUnavailable, fmt::format("{}: redirects from https to http", get.url));
    }
  }
  return error(ErrorCode::kUnavailable, fmt::format("{}: more than {} redirects", get.url, kMaxRedirects));
}

}  // namespace manta::model
