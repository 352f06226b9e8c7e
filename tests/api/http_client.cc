#include "http_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace manta::api::testing {
namespace {

constexpr int kPatienceMs = 20'000;

}  // namespace

std::string ClientResponse::header(const std::string& name) const {
  const std::string key = "\r\n" + name + ": ";
  const size_t at = head.find(key);
  if (at == std::string::npos) return "";
  const size_t begin = at + key.size();
  return head.substr(begin, head.find("\r\n", begin) - begin);
}

HttpClient::HttpClient(uint16_t port) {
  fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) close();
}

HttpClient::HttpClient(const std::string& unix_path) {
  fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  unix_path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) close();
}

HttpClient::~HttpClient() {
  close();
}

void HttpClient::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void HttpClient::reset() {
  const linger hard{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close();
}

void HttpClient::finish_sending() {
  ::shutdown(fd_, SHUT_WR);
}

void HttpClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;  // the server may close on what it does not like; the test looks at the answer
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

bool HttpClient::fill() {
  if (fd_ < 0) return false;
  pollfd wait{.fd = fd_, .events = POLLIN, .revents = 0};
  if (::poll(&wait, 1, kPatienceMs) <= 0) return false;
  char bytes[65536];
  const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
  if (n <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(n));
  return true;
}

bool HttpClient::wait_closed() {
  while (fill()) buffer_.clear();
  char byte;
  return fd_ < 0 || ::recv(fd_, &byte, 1, MSG_DONTWAIT) <= 0;
}

std::optional<std::string> HttpClient::read_exactly(size_t n) {
  while (buffer_.size() < n) {
    if (!fill()) return {};
  }
  std::string out = buffer_.substr(0, n);
  buffer_.erase(0, n);
  return out;
}

std::optional<std::string> HttpClient::read_line() {
  size_t end;
  while ((end = buffer_.find("\r\n")) == std::string::npos) {
    if (!fill()) return {};
  }
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 2);
  return line;
}

std::optional<ClientResponse> HttpClient::read_head() {
  ClientResponse response;
  auto status_line = read_line();
  if (!status_line || status_line->size() < 12) return {};
  response.status = std::atoi(status_line->c_str() + 9);
  response.head = "\r\n";
  for (;;) {
    auto line = read_line();
    if (!line) return {};
    if (line->empty()) break;
    const size_t colon = line->find(':');
    std::transform(line->begin(), line->begin() + static_cast<long>(colon), line->begin(),
                   [](char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); });
    response.head += *line + "\r\n";
  }
  return response;
}

std::optional<std::string> HttpClient::read_chunk() {
  const auto size_line = read_line();
  if (!size_line) return {};
  auto chunk = read_exactly(std::strtoul(size_line->c_str(), nullptr, 16));
  if (!chunk || !read_line()) return {};
  return chunk;
}

std::optional<ClientResponse> HttpClient::read_response() {
  auto response = read_head();
  if (!response) return {};
  if (response->status == 100) return response;
  if (response->header("transfer-encoding") == "chunked") {
    for (;;) {
      auto chunk = read_chunk();
      if (!chunk) return {};
      if (chunk->empty()) return response;
      response->body += *chunk;
    }
  }
  const std::string length = response->header("content-length");
  if (length.empty()) return response;
  auto body = read_exactly(std::strtoul(length.c_str(), nullptr, 10));
  if (!body) return {};
  response->body = std::move(*body);
  return response;
}

std::optional<std::string> HttpClient::read_event() {
  if (stream_.status == 0) {
    auto head = read_head();
    if (!head) return {};
    stream_ = std::move(*head);
  }
  size_t end;
  while ((end = events_.find("\n\n")) == std::string::npos) {
    auto chunk = read_chunk();
    if (!chunk || chunk->empty()) {
      stream_ = {};
      return {};
    }
    events_ += *chunk;
  }
  std::string event = events_.substr(0, end);
  events_.erase(0, end + 2);
  return event.starts_with("data: ") ? event.substr(6) : event;
}

std::optional<ClientResponse> HttpClient::get(const std::string& path, const std::string& headers) {
  send(fmt::format("GET {} HTTP/1.1\r\nHost: test\r\n{}\r\n", path, headers));
  return read_response();
}

void HttpClient::start_post(const std::string& path, const std::string& json, const std::string& headers) {
  send(fmt::format("POST {} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{}",
                   path, json.size(), headers, json));
}

std::optional<ClientResponse> HttpClient::post(const std::string& path, const std::string& json,
                                               const std::string& headers) {
  start_post(path, json, headers);
  return read_response();
}

std::vector<std::string> HttpClient::post_stream(const std::string& path, const std::string& json) {
  start_post(path, json);
  std::vector<std::string> events;
  while (auto event = read_event()) events.push_back(std::move(*event));
  return events;
}

}  // namespace manta::api::testing
