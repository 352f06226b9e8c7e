#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <csignal>
#include <cstdio>
#include <thread>

#include "base/log.h"
#include "base/settings.h"
#include "cluster/child.h"
#include "manta/child_process.h"
#include "manta/commands.h"
#include "manta/model_source.h"
#include "manta/ready.h"
#include "router/router.h"

namespace manta {
namespace {

int serve(const Settings& settings, const std::function<void(const std::string& url)>& on_ready) {
  std::signal(SIGPIPE, SIG_IGN);
  const Status served = router::run_router(settings, on_ready);
  return served.ok() ? 0 : fail_child(served.error());
}

// Started by `manta up`: settings over the inherited descriptor, readiness to the parent.
int run_child() {
  const auto settings = begin_child("router");
  if (!settings.ok()) return fail_child(settings.error());
  boost::asio::io_context io;
  cluster::follow_parent(io);
  std::thread lifeline([&io] { io.run(); });
  const int code = serve(*settings, [](const std::string& url) { report_event("ready", url); });
  io.stop();
  lifeline.join();
  return code;
}

}  // namespace

int run_router(const Args& args) {
  if (args.size() == 1 && args[0] == "--child") return run_child();
  const EnvMap env = read_environment();
  const auto parsed = parse_command_line(args, env);
  if (!parsed.ok()) {
    fmt::print(stderr, "manta router: {}\n", parsed.error().message);
    return 2;
  }
  if (parsed->help) {
    fmt::print("{}", *parsed->help);
    return 0;
  }
  init_logging("router", parsed->settings.log_level);
  for (const auto& note : parsed->notes) spdlog::info("{}", note);
  for (const auto& changed : changed_settings(*parsed)) spdlog::info("{}", changed);
  Settings asked = parsed->settings;
  // A router needs no weights: the tokenizer's folder will do.
  if (asked.model.empty()) asked.model = asked.tokenizer.value_or("");
  auto settings = with_local_model(std::move(asked), env);
  if (!settings.ok()) {
    spdlog::error("{}", settings.error().message);
    return 2;
  }
  return serve(*settings, [&](const std::string& url) {
    fmt::print("\nmanta {} routes {}\n", MANTA_VERSION, settings->served_model_name.front());
    print_api(url, settings->served_model_name.front());
    if (const Status written = write_ready_file(*settings, url); !written.ok()) {
      spdlog::error("{}; stopping", written.error().message);
      std::raise(SIGTERM);
    }
  });
}

}  // namespace manta
