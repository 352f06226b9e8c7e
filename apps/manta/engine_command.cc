#include <fmt/format.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <future>
#include <thread>

#include "base/log.h"
#include "cluster/child.h"
#include "engine/engine.h"
#include "engine/server.h"
#include "manta/child_process.h"
#include "manta/engine_parts.h"
#include "model/progress.h"

namespace manta {
namespace {

// Every rank tells its parent, ten times a second at most. Ranks load alike, so only the first tells people too.
model::ProgressFn tell_progress(int rank) {
  const auto print = rank == 0 ? model::print_progress(stderr, "loading weights") : nullptr;
  double told_at = -1;
  return [print, told_at](const model::Progress& progress) mutable {
    if (print) print(progress);
    if (!progress.finished && progress.seconds - told_at < 0.1) return;
    told_at = progress.seconds;
    report_event("progress", "loading weights " + model::describe(progress));
  };
}

// The process of one rank: the io thread is main, the engine has a thread of its own.
class EngineProcess {
 public:
  EngineProcess(const ChildArguments& arguments, const Settings& settings)
      : arguments_(arguments), settings_(settings), signals_(io_, SIGTERM) {}

  int run() {
    cluster::follow_parent(io_);
    auto server = engine::Server::open(io_, server_options());
    if (!server.ok()) return fail_child(server.error());
    server_ = std::move(*server);
    signals_.async_wait([this](boost::system::error_code ec, int) {
      if (!ec) on_sigterm();
    });
    std::thread thread([this] { run_engine_thread(); });
    io_.run();
    thread.join();
    return exit_code_;
  }

 private:
  engine::ServerOptions server_options() {
    engine::ServerOptions options;
    options.rank = arguments_.rank;
    options.listen = arguments_.listen;
    options.coordinator = arguments_.coordinator;
    options.host = host_name();
    options.group_size = expert_group_size(settings_);
    options.shared_config = shared_settings(settings_);
    options.log_stats = !settings_.disable_log_stats;
    options.on_refused = [this](const std::string& reason) {
      ::_exit(fail_child(error(ErrorCode::kFailedPrecondition, reason)));
    };
    return options;
  }

  void run_engine_thread() {
    const Status status = load_and_run();
    boost::asio::post(io_, [this, status] { finish(status); });
  }

  Status load_and_run() {
    report_event("progress", "loading");
    MANTA_ASSIGN(EngineParts parts, make_engine_parts(settings_, arguments_.rank, tell_progress(arguments_.rank)));
    engine::Welcome welcome = parts.welcome;
    welcome.role = arguments_.role;
    parts.options.on_serving = [this, summary = parts.summary] {
      served_ = true;
      report_event("ready", summary);
    };
    engine::Engine engine(
        parts.options, std::move(parts.scheduler), std::move(parts.executor), std::move(parts.grammars),
        [this](uint64_t client, engine::Outputs&& outputs) { server_->deliver(client, std::move(outputs)); });
    boost::asio::post(io_, [this, &engine] {
      engine_ = &engine;
      if (draining_) engine.drain();
    });
    server_->ready(engine, std::move(welcome));
    const Status status = engine.run();
    // The io thread must let go of the engine before it is destroyed here.
    release_engine();
    return status;
  }

  void release_engine() {
    std::promise<void> released;
    boost::asio::post(io_, [this, &released] {
      engine_ = nullptr;
      server_->close([&released] { released.set_value(); });
    });
    released.get_future().wait();
  }

  void on_sigterm() {
    draining_ = true;
    server_->drain();
    if (engine_)
      engine_->drain();
    else
      ::_exit(0);  // still loading: there is nothing to finish
  }

  void finish(const Status& status) {
    exit_code_ = status.ok() ? 0 : fail_child(status.error());
    if (served_ && exit_code_ != 0) exit_code_ = 1;  // its configuration was good enough to start with
    server_ = nullptr;
    io_.stop();
  }

  ChildArguments arguments_;
  Settings settings_;
  boost::asio::io_context io_;
  boost::asio::signal_set signals_;
  std::unique_ptr<engine::Server> server_;
  engine::Engine* engine_ = nullptr;
  bool draining_ = false;
  bool served_ = false;  // the engine's thread, then the io thread's
  int exit_code_ = 1;
};

}  // namespace

int run_engine(const Args& args) {
  const auto arguments = parse_child_arguments("engine", args);
  const auto settings =
      begin_child(arguments.ok() ? fmt::format("engine {} {}", arguments->role, arguments->rank) : "engine");
  if (!arguments.ok()) return fail_child(arguments.error());
  if (!settings.ok()) return fail_child(settings.error());
  return EngineProcess(*arguments, *settings).run();
}

}  // namespace manta
