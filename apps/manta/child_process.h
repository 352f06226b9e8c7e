// What the processes that `manta serve` starts have in common: their command line, their settings from the inherited
// descriptor, logging under their own name, and SIGTERM as the request to drain.
#pragma once

#include <string>

#include "base/result.h"
#include "base/settings.h"
#include "manta/commands.h"

namespace manta {

struct ChildArguments {
  std::string role = "mixed";  // prefill, decode or mixed
  int rank = 0;
  std::string listen;       // address of its own
  std::string coordinator;  // address of the deployment's coordinator
};

Result<ChildArguments> parse_child_arguments(const std::string& command, const Args& args);

// What a process calls itself in the log: "api", or "api prefill" where its deployment has one role only.
std::string child_name(const std::string& command, const Result<ChildArguments>& arguments);

// Reads the settings descriptor, starts logging as `name`.
Result<Settings> begin_child(const std::string& name);

// A line of {"event": …} for the parent's display.
void report_event(const std::string& event, const std::string& text);

// Logs the error and gives the exit code for it: 2 where starting again cannot help.
int fail_child(const Error& e);

}  // namespace manta
