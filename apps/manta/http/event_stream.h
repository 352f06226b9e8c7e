// The client's side of an OpenAI stream: sends a POST, hands out the data of each server-sent event as it comes.
// For programs that talk to a server (bench, chat); includes Asio, so only their .cc files include it.
#pragma once

#include <utility>  // first: Boost 1.74's awaitable.hpp uses std::exchange without it

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace manta::http_client {

struct ServerAddress {
  std::string host = "127.0.0.1";
  std::string port = "8000";
  std::string api_key;  // sent as Bearer token when not empty
};

// "http://host:port[/…]"
Result<ServerAddress> parse_url(const std::string& url);

struct StreamEnd {
  int status = 0;       // HTTP
  bool done = false;    // [DONE] was seen
  std::string refusal;  // the body when status is not 200
};

// A connection that is kept alive between requests and opened when needed. One request at a time.
class Connection {
 public:
  Connection(boost::asio::io_context& io, const ServerAddress& server);
  ~Connection();
  // Throws boost::system::system_error when the connection cannot be made or breaks.
  boost::asio::awaitable<StreamEnd> post(std::string target, std::string body,
                                         std::function<void(std::string_view data)> on_data);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// GET target: the body of a 200 answer.
Result<std::string> get(const ServerAddress& server, const std::string& target);
// The first model the server lists.
Result<std::string> first_model(const ServerAddress& server);

}  // namespace manta::http_client
