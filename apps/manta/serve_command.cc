#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/log.h"
#include "base/settings.h"
#include "manta/commands.h"
#include "manta/deployment.h"
#include "manta/model_source.h"

namespace manta {

namespace {

void warn_of_meaningless_outputs(const Settings& s) {
  std::string why;
  if (!s.moe_routing_simulation_strategy.empty()) {
    why = fmt::format("experts are chosen by {} instead of the router", s.moe_routing_simulation_strategy);
  }
  if (s.load_format == "dummy") why += std::string(why.empty() ? "" : ", and ") + "the weights are random numbers";
  if (!why.empty()) spdlog::warn("OUTPUTS ARE MEANINGLESS: {}. For benches only", why);
}

}  // namespace

int run_serve(const Args& args) {
  const EnvMap env = read_environment();
  const auto parsed = parse_command_line(args, env);
  if (!parsed.ok()) {
    fmt::print(stderr, "manta serve: {}\n", parsed.error().message);
    return 2;
  }
  if (parsed->help) {
    fmt::print("{}", *parsed->help);
    return 0;
  }
  if (parsed->settings.model.empty()) {
    fmt::print(stderr,
               "manta serve: no MODEL: give a checkpoint folder or a Hub id, e.g. manta serve models/tiny-v3\n");
    return 2;
  }
  init_logging("serve", parsed->settings.log_level);
  for (const auto& note : parsed->notes) spdlog::info("{}", note);
  for (const auto& changed : changed_settings(*parsed)) spdlog::info("{}", changed);
  warn_of_meaningless_outputs(parsed->settings);
  auto settings = with_local_model(parsed->settings, env);
  if (!settings.ok()) {
    spdlog::error("{}", settings.error().message);
    return 2;
  }
  return Deployment(std::move(*settings)).run();
}

}  // namespace manta
