// `manta chat`: a conversation with a served model, in a terminal.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "manta/commands.h"
#include "manta/http/event_stream.h"

namespace manta {
namespace {

using nlohmann::json;

struct ChatOptions {
  std::string url = "http://127.0.0.1:8000";
  std::string model, api_key, system;
  double temperature = 0;
  int max_tokens = 512;
};

// Prints one answer as it comes; returns its text.
class Answer {
 public:
  void on_data(std::string_view data) {
    const json event = json::parse(data, nullptr, /*allow_exceptions=*/false);
    if (!event.is_object()) return;
    if (event.contains("error")) error_ = event["error"].value("message", "error");
    if (!event.contains("choices") || event["choices"].empty()) return;
    const json& delta = event["choices"][0].value("delta", json::object());
    print(delta, "reasoning", "\x1b[2m");
    text_ += print(delta, "content", "");
  }
  const std::string& text() const { return text_; }
  const std::string& error() const { return error_; }

 private:
  static std::string print(const json& delta, const char* field, const char* style) {
    if (!delta.contains(field) || !delta[field].is_string()) return {};
    const auto piece = delta[field].get<std::string>();
    fmt::print("{}{}{}", style, piece, *style ? "\x1b[0m" : "");
    std::fflush(stdout);
    return piece;
  }

  std::string text_, error_;
};

class Chat {
 public:
  Chat(const ChatOptions& options, const http_client::ServerAddress& server)
      : options_(options), server_(server), connection_(io_, server_) {
    reset();
  }

  void reset() {
    messages_ = json::array();
    if (!options_.system.empty()) messages_.push_back({{"role", "system"}, {"content", options_.system}});
  }

  // One turn. An error is printed and the turn forgotten.
  void say(const std::string& line) {
    messages_.push_back({{"role", "user"}, {"content", line}});
    const json body{{"model", options_.model},
                    {"messages", messages_},
                    {"stream", true},
                    {"temperature", options_.temperature},
                    {"max_tokens", options_.max_tokens}};
    Answer answer;
    const std::string problem = post(body.dump(-1, ' ', false, json::error_handler_t::replace), answer);
    fmt::print("\n");
    if (problem.empty()) {
      messages_.push_back({{"role", "assistant"}, {"content", answer.text()}});
    } else {
      fmt::print(stderr, "error: {}\n", problem);
      messages_.erase(messages_.size() - 1);
    }
  }

 private:
  std::string post(const std::string& body, Answer& answer) {
    http_client::StreamEnd end;
    std::string broken;
    const auto turn = [&]() -> boost::asio::awaitable<void> {
      try {
        end = co_await connection_.post("/v1/chat/completions", body, [&](std::string_view d) { answer.on_data(d); });
      } catch (const std::exception& e) {
        broken = e.what();
      }
    };
    io_.restart();
    boost::asio::co_spawn(io_, turn, boost::asio::detached);
    io_.run();
    if (!broken.empty()) return broken;
    if (end.status != 200) return fmt::format("HTTP {}: {}", end.status, end.refusal);
    return answer.error();
  }

  ChatOptions options_;
  http_client::ServerAddress server_;
  boost::asio::io_context io_;
  http_client::Connection connection_;
  json messages_;
};

Status run(ChatOptions options) {
  MANTA_ASSIGN(http_client::ServerAddress server, http_client::parse_url(options.url));
  server.api_key = options.api_key;
  if (options.model.empty()) {
    MANTA_ASSIGN(options.model, http_client::first_model(server));
  }
  fmt::print("{} at {}. /reset begins anew, Ctrl-D ends.\n", options.model, options.url);
  Chat chat(options, server);
  std::string line;
  while (true) {
    fmt::print("> ");
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) break;
    if (line == "/reset") {
      chat.reset();
    } else if (!line.empty()) {
      chat.say(line);
    }
  }
  fmt::print("\n");
  return {};
}

}  // namespace

int run_chat(const Args& args) {
  CLI::App app("talk to a served model", "manta chat");
  ChatOptions options;
  app.add_option("--url", options.url, "the server, http://host:port")->capture_default_str();
  app.add_option("--model", options.model, "model name; not given: the first the server lists");
  app.add_option("--api-key", options.api_key, "Bearer token");
  app.add_option("--system", options.system, "system message");
  app.add_option("--temperature", options.temperature, "0: always the most likely token")->check(CLI::Range(0.0, 2.0));
  app.add_option("--max-tokens", options.max_tokens, "longest answer")->check(CLI::PositiveNumber);
  Args reversed(args.rbegin(), args.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  const Status status = run(std::move(options));
  if (status.ok()) return 0;
  fmt::print(stderr, "manta chat: {}\n", status.error().message);
  return 1;
}

}  // namespace manta
