#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>

#include "base/log.h"
#include "base/settings.h"
#include "cluster/child.h"
#include "cluster/coordinator.h"
#include "manta/child_process.h"
#include "manta/engine_parts.h"

namespace manta {
namespace {

constexpr const char* kHelp =
    "manta coordinator --listen tcp:HOST:PORT [--rank-deadline-s S] [--step-deadline-s S] [--shrink-after-s S]:\n"
    "the membership process of a deployment whose nodes are started with --coordinator tcp:HOST:PORT. Other options of "
    "manta serve are not "
    "needed:\n"
    "what the nodes must have in common, the first one brings.\n";

struct CoordinatorPlan {
  std::string listen;
  cluster::CoordinatorOptions options;
};

cluster::Deadlines deadlines_from(const Settings& settings) {
  const auto ms = [](double seconds) { return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)); };
  cluster::Deadlines deadlines;
  deadlines.rank = ms(settings.rank_deadline_s);
  deadlines.step = ms(settings.step_deadline_s);
  deadlines.shrink = ms(settings.shrink_after_s);
  return deadlines;
}

// Started by `manta serve`: it knows what the deployment is.
Result<CoordinatorPlan> plan_of_child(const Args& args) {
  MANTA_ASSIGN(const auto arguments, parse_child_arguments("coordinator", args));
  MANTA_ASSIGN(const Settings settings, begin_child(child_name("coordinator", arguments)));
  CoordinatorPlan plan{arguments.listen, {}};
  plan.options.deadlines = deadlines_from(settings);
  plan.options.group_size = expert_group_size(settings);
  plan.options.shared_config = shared_settings(settings);
  return plan;
}

// Started by hand, or by a cluster manager.
Result<CoordinatorPlan> plan_by_hand(Args args) {
  CoordinatorPlan plan;
  for (size_t i = 0; i + 1 < args.size(); ++i) {
    if (args[i] != "--listen") continue;
    plan.listen = args[i + 1];
    args.erase(args.begin() + static_cast<long>(i), args.begin() + static_cast<long>(i) + 2);
    break;
  }
  if (plan.listen.empty()) {
    return error(ErrorCode::kInvalidArgument, fmt::format("no --listen ADDRESS\n{}", kHelp));
  }
  args.insert(args.begin(), "none");  // in the place of MODEL, which it does not read
  MANTA_ASSIGN(const ParsedSettings parsed, parse_command_line(args, {}));
  init_logging("coordinator", parsed.settings.log_level);
  plan.options.deadlines = deadlines_from(parsed.settings);
  return plan;
}

}  // namespace

int run_coordinator(const Args& args) {
  if (args.size() == 1 && (args[0] == "--help" || args[0] == "-h")) {
    fmt::print("{}", kHelp);
    return 0;
  }
  const bool by_parent = cluster::has_parent();
  const auto plan = by_parent ? plan_of_child(args) : plan_by_hand(args);
  if (!plan.ok()) return fail_child(plan.error());

  boost::asio::io_context io;
  if (by_parent) cluster::follow_parent(io);
  boost::asio::signal_set signals(io, SIGTERM, SIGINT);
  signals.async_wait([&io](boost::system::error_code, int) { io.stop(); });
  const auto coordinator = cluster::Coordinator::open(io, plan->listen, plan->options);
  if (!coordinator.ok()) return fail_child(coordinator.error());
  spdlog::info("listens on {}", (*coordinator)->address());
  report_event("ready", (*coordinator)->address());
  io.run();
  return 0;
}

}  // namespace manta
