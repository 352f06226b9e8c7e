#include <fmt/format.h>

#include <array>
#include <cstdio>

#include "manta/commands.h"

namespace {

struct Command {
  const char* name;
  int (*run)(const manta::Args&);
  const char* help;
};

constexpr std::array kCommands{
    Command{"serve", manta::run_serve, "serve MODEL on this node: OpenAI API, coordinator, DP ranks"},
    Command{"router", manta::run_router, "the P/D front door: one API before prefill and decode deployments"},
    Command{"up", manta::run_up, "a pd.yaml on this machine: prefill, decode and router"},
    Command{"status", manta::run_status, "how a running deployment is, rank by rank (--json for programs)"},
    Command{"chat", manta::run_chat, "talk to a served model in this terminal"},
    Command{"bench", manta::run_bench, "bench serve: load generator for an OpenAI-compatible server"},
    Command{"settings", manta::run_settings,
            "every setting, its default and its answer (--markdown for the docs page)"},
    Command{"api", manta::run_api, "the HTTP process of a deployment (started by serve)"},
    Command{"engine", manta::run_engine, "one DP rank of a deployment (started by serve)"},
    Command{"coordinator", manta::run_coordinator, "the membership process of a deployment (started by serve)"},
};

void print_usage(std::FILE* out) {
  fmt::print(out, "manta {}: serves DeepSeek-V3-family models\n\nusage: manta COMMAND [options]\n\n", MANTA_VERSION);
  for (const auto& command : kCommands) fmt::print(out, "  {:12} {}\n", command.name, command.help);
  fmt::print(out, "\nmanta serve --help lists its options; manta --version prints the version.\n");
}

}  // namespace

int main(int argc, char** argv) {
  const manta::Args args(argv + 1, argv + argc);
  if (args.empty()) {
    print_usage(stderr);
    return 2;
  }
  if (args[0] == "--version" || args[0] == "version") {
    fmt::print("manta {}\n", MANTA_VERSION);
    return 0;
  }
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    print_usage(stdout);
    return 0;
  }
  for (const auto& command : kCommands) {
    if (args[0] == command.name) return command.run(manta::Args(args.begin() + 1, args.end()));
  }
  fmt::print(stderr, "manta: unknown command \"{}\"\n\n", args[0]);
  print_usage(stderr);
  return 2;
}
