#include "manta/stop_signals.h"

#include <csignal>
#include <utility>

#include "base/log.h"

namespace manta {

StopSignals::StopSignals(boost::asio::io_context& io, std::function<void()> drain, std::function<void()> leave)
    : signals_(io, SIGINT, SIGTERM), drain_(std::move(drain)), leave_(std::move(leave)) {
  std::signal(SIGPIPE, SIG_IGN);
  signals_.async_wait([this](boost::system::error_code ec, int signal) {
    if (!ec) on_first(signal);
  });
}

void StopSignals::on_first(int signal) {
  spdlog::info("{}: draining; once more to leave at once", signal == SIGINT ? "Ctrl-C" : "SIGTERM");
  signals_.async_wait([this](boost::system::error_code ec, int) {
    if (ec) return;
    spdlog::warn("second signal: leaving without draining");
    leave_();
  });
  drain_();
}

}  // namespace manta
