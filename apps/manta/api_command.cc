#include <boost/asio/io_context.hpp>
#include <thread>

#include "api/server.h"
#include "cluster/child.h"
#include "manta/child_process.h"

namespace manta {

int run_api(const Args& args) {
  const auto arguments = parse_child_arguments("api", args);
  const auto settings = begin_child(child_name("api", arguments));
  if (!arguments.ok()) return fail_child(arguments.error());
  if (!settings.ok()) return fail_child(settings.error());

  // The server's own loops belong to it; the parent's end is watched from a loop of its own.
  boost::asio::io_context io;
  cluster::follow_parent(io);
  std::thread lifeline([&io] { io.run(); });
  const Status served = api::run_api_server(*settings, arguments->coordinator, arguments->listen,
                                            [](const std::string& url) { report_event("ready", url); });
  io.stop();
  lifeline.join();
  return served.ok() ? 0 : fail_child(served.error());
}

}  // namespace manta
