#include <fmt/format.h>

#include <cstdio>

#include "base/settings.h"
#include "manta/commands.h"

namespace manta {

int run_settings(const Args& args) {
  if (args.size() == 1 && args[0] == "--markdown") {
    fmt::print("{}", settings_markdown());
    return 0;
  }
  if (args.size() > 1) {
    fmt::print(stderr, "usage: manta settings [GROUP | OPTION | all | --markdown]\n");
    return 2;
  }
  fmt::print("{}", settings_help(args.empty() ? "all" : args[0]));
  return 0;
}

}  // namespace manta
