#include "manta/bench/load_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <nlohmann/json.hpp>

namespace manta::bench {
namespace {

namespace asio = boost::asio;
using asio::awaitable;
using Clock = std::chrono::steady_clock;

class LoadRun {
 public:
  LoadRun(const http_client::ServerAddress& server, const std::vector<LoadRequest>& requests)
      : server_(server), requests_(requests), records_(requests.size()) {}

  std::vector<RequestRecord> run(int concurrency) {
    begin_ = Clock::now();
    const int workers = std::min<int>(concurrency, static_cast<int>(requests_.size()));
    for (int i = 0; i < workers; ++i) asio::co_spawn(io_, work(), asio::detached);
    io_.run();
    return std::move(records_);
  }

 private:
  double now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

  // One of `concurrency` clients: takes the next request until none is left.
  awaitable<void> work() {
    http_client::Connection connection(io_, server_);
    while (next_ < requests_.size()) {
      const size_t i = next_++;
      co_await wait_until(requests_[i].start_s);
      RequestRecord& record = records_[i];
      record.start_s = now();
      try {
        const auto end = co_await connection.post(requests_[i].target, requests_[i].body,
                                                  [&](std::string_view data) { on_event(data, record); });
        if (end.status != 200) {
          record.error = fmt::format("HTTP {}: {}", end.status, end.refusal.substr(0, 200));
        } else if (!end.done && record.ok()) {
          record.error = "the stream ended without [DONE]";
        }
      } catch (const std::exception& e) {
        record.error = e.what();
      }
      record.end_s = now();
    }
  }

  awaitable<void> wait_until(double at_s) {
    const auto at = begin_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(at_s));
    if (at <= Clock::now()) co_return;
    asio::steady_timer timer(io_, at);
    co_await timer.async_wait(asio::use_awaitable);
  }

  void on_event(std::string_view data, RequestRecord& record) {
    if (data.find("\"usage\":{") != std::string_view::npos || data.starts_with("{\"error\"")) {
      const auto event = nlohmann::json::parse(data, nullptr, /*allow_exceptions=*/false);
      if (event.is_object() && event.contains("error")) record.error = event["error"].value("message", "error");
      if (event.is_object() && event.contains("usage") && event["usage"].is_object()) {
        record.prompt_tokens = event["usage"].value("prompt_tokens", 0);
        record.output_tokens = event["usage"].value("completion_tokens", 0);
      }
      if (!event.is_object() || !event.contains("choices") || event["choices"].empty()) return;
    }
    // The first chunk of a chat names the role only; it carries no token.
    if (data.find("\"role\":\"assistant\"") != std::string_view::npos &&
        data.find("\"content\":\"\"") != std::string_view::npos) {
      return;
    }
    record.chunks_s.push_back(now());
  }

  const http_client::ServerAddress& server_;
  const std::vector<LoadRequest>& requests_;
  std::vector<RequestRecord> records_;
  asio::io_context io_{1};
  Clock::time_point begin_;
  size_t next_ = 0;
};

}  // namespace

std::vector<RequestRecord> run_load(const http_client::ServerAddress& server, int concurrency,
                                    const std::vector<LoadRequest>& requests) {
  return LoadRun(server, requests).run(concurrency);
}

}  // namespace manta::bench
