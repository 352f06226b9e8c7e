#include "manta/child_process.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cluster/child.h"
#include "cluster/supervisor.h"

namespace manta {

Result<ChildArguments> parse_child_arguments(const std::string& command, const Args& args) {
  CLI::App app("started by `manta serve`", "manta " + command);
  ChildArguments out;
  app.add_option("--role", out.role)->check(CLI::IsMember({"prefill", "decode", "mixed"}));
  app.add_option("--rank", out.rank)->check(CLI::NonNegativeNumber);
  app.add_option("--listen", out.listen);
  app.add_option("--coordinator", out.coordinator);
  Args reversed(args.rbegin(), args.rend());  // CLI11 takes them from the back
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& e) {
    return error(ErrorCode::kInvalidArgument, fmt::format("manta {}: {}", command, e.what()));
  }
  return out;
}

std::string child_name(const std::string& command, const Result<ChildArguments>& arguments) {
  return arguments.ok() && arguments->role != "mixed" ? command + " " + arguments->role : command;
}

Result<Settings> begin_child(const std::string& name) {
  init_logging(name, "info");
  MANTA_ASSIGN(const std::string text, cluster::read_settings());
  MANTA_ASSIGN(Settings settings, settings_from_json(text));
  init_logging(name, settings.log_level);
  return settings;
}

void report_event(const std::string& event, const std::string& text) {
  cluster::report_status(nlohmann::json{{"event", event}, {"text", text}}.dump());
}

int fail_child(const Error& e) {
  spdlog::error("{}", e.message);
  report_event("failed", e.message);
  const bool hopeless = e.code == ErrorCode::kInvalidArgument || e.code == ErrorCode::kNotFound ||
                        e.code == ErrorCode::kFailedPrecondition || e.code == ErrorCode::kDataLoss;
  return hopeless ? cluster::kExitBadConfiguration : 1;
}

}  // namespace manta
