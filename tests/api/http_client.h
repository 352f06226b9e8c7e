// A small blocking HTTP client for tests: raw bytes out, responses or stream events in. Every wait has a limit, so a
// broken server fails a test instead of hanging it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace manta::api::testing {

struct ClientResponse {
  int status = 0;
  std::string head;  // raw, lower-cased names
  std::string body;  // decoded
  std::string header(const std::string& name) const;
};

class HttpClient {
 public:
  explicit HttpClient(uint16_t port);
  explicit HttpClient(const std::string& unix_path);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  void send(std::string_view bytes);
  void finish_sending();  // half-close
  void close();
  void reset();  // close with RST

  // A whole response (by its Content-Length or chunks). nullopt: the server closed before one was complete.
  std::optional<ClientResponse> read_response();
  // The next SSE event's data of a stream whose head is read on the first call. nullopt: the stream has ended.
  std::optional<std::string> read_event();
  const ClientResponse& stream_head() const { return stream_; }
  // True once the server has closed; bytes before that are dropped.
  bool wait_closed();

  std::optional<ClientResponse> get(const std::string& path, const std::string& headers = "");
  std::optional<ClientResponse> post(const std::string& path, const std::string& json, const std::string& headers = "");
  void start_post(const std::string& path, const std::string& json, const std::string& headers = "");
  // Of a stream until [DONE]; the data of each event.
  std::vector<std::string> post_stream(const std::string& path, const std::string& json);

 private:
  bool fill();  // reads more; false: closed, or nothing came in time
  std::optional<ClientResponse> read_head();
  std::optional<std::string> read_exactly(size_t n);
  std::optional<std::string> read_line();
  std::optional<std::string> read_chunk();

  int fd_ = -1;
  std::string buffer_;
  ClientResponse stream_;
  std::string events_;
};

}  // namespace manta::api::testing
