#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>

#include "base/log.h"
#include "cluster/child.h"
#include "cluster/coordinator.h"
#include "manta/child_process.h"
#include "manta/engine_parts.h"

namespace manta {

int run_coordinator(const Args& args) {
  const auto arguments = parse_child_arguments("coordinator", args);
  const auto settings = begin_child("coordinator");
  if (!arguments.ok()) return fail_child(arguments.error());
  if (!settings.ok()) return fail_child(settings.error());

  boost::asio::io_context io;
  cluster::follow_parent(io);
  const auto ms = [](double seconds) { return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)); };
  cluster::CoordinatorOptions options;
  options.deadlines.rank = ms(settings->rank_deadline_s);
  options.deadlines.step = ms(settings->step_deadline_s);
  options.group_size = expert_group_size(*settings);
  const auto coordinator = cluster::Coordinator::open(io, arguments->listen, options);
  if (!coordinator.ok()) return fail_child(coordinator.error());
  report_event("ready", (*coordinator)->address());

  boost::asio::signal_set signals(io, SIGTERM);
  signals.async_wait([&io](boost::system::error_code, int) { io.stop(); });
  io.run();
  return 0;
}

}  // namespace manta
