// HTTP/1.1 requests and responses as handlers see them: plain values, no parser types.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace manta::api {

struct Relayed;

struct HttpHeader {
  std::string name, value;
};

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // target up to '?', as sent
  std::string query;   // behind '?', may be empty
  std::vector<HttpHeader> headers;
  std::string body;
  std::shared_ptr<const Relayed> relayed;  // what a router added (api/relay/relayed.h); null: it came over HTTP

  // Value of the first header of that name (any case), empty when there is none.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpHeader> headers;  // beside Content-Type, Content-Length, Date and Connection
  std::string body;
  bool close = false;  // the connection ends with this response
};

const char* reason_phrase(int status);

// A-Z and a-z alike, as header names and schemes compare.
bool equals_ignoring_case(std::string_view a, std::string_view b);

// The one response to a request. Used on its event loop's thread only; a handler keeps the pointer as long as it may
// still answer. Either send(), or begin_stream(), then any number of body()/commit(), then end_stream().
// Once the client is gone everything here is a no-op.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;

  virtual void send(HttpResponse response) = 0;

  // 200, text/event-stream, chunked. headers come on top.
  virtual void begin_stream(const std::vector<HttpHeader>& headers) = 0;
  // Where the next bytes of the stream are appended. commit() sends them at the end of this turn of the loop, together
  // with whatever else was committed until then: one write per connection and step.
  virtual std::string& body() = 0;
  virtual void commit() = 0;
  virtual void end_stream() = 0;
  // The bytes of the next commit() complete the text of these tokens. Only a router wants to know.
  virtual void note_tokens(int choice, std::span<const TokenId> tokens, bool finished) {}

  // Runs once, when the client went away, stopped reading or the server gives up before the response has ended.
  // Never inside a call of the handler's own.
  virtual void on_gone(std::function<void()> callback) = 0;
  virtual bool gone() const = 0;
};
using ResponseWriterPtr = std::shared_ptr<ResponseWriter>;

// What a connection asks of the server above it. Called on the connection's loop.
class HttpService {
 public:
  virtual ~HttpService() = default;
  // Looks at a request before its body is read: wrong path, no key, draining. The answer, or nothing to go on.
  virtual std::optional<HttpResponse> refuse(const HttpRequest& head) = 0;
  virtual void handle(HttpRequest request, ResponseWriterPtr writer) = 0;
  // Headers of whatever answer this request gets.
  virtual std::vector<HttpHeader> common_headers(const HttpRequest& head) = 0;
  // An answer of that status is on its way.
  virtual void on_response(int status) = 0;
  // The answer to bytes that are no request, or too much of one.
  virtual HttpResponse bad_request(int status, const std::string& why) = 0;
};

}  // namespace manta::api
