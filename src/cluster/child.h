// Starting child processes that cannot outlive us, and what such a child does at its end of the pipes.
//
// Every child is this same binary with another subcommand; its command line says what it is, so `ps` reads like the
// deployment. It inherits three descriptors: its settings (a sealed memory file: no secrets in `ps`), a lifeline whose
// end-of-file means the parent is gone, and a status pipe for one JSON object per line.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/result.h"

namespace boost::asio {
class io_context;
}

namespace manta::cluster {

inline constexpr int kSettingsFd = 3;
inline constexpr int kLifelineFd = 4;
inline constexpr int kStatusFd = 5;

struct ChildCommand {
  std::vector<std::string> args;  // after the binary: {"engine", "--role", "decode", "--rank", "3"}
  std::string settings;           // read by the child from kSettingsFd
  EnvMap env;                     // on top of this process's own environment
  bool capture_output = false;    // stdout and stderr come to on_output; else they are this process's own
};

class Child {
 public:
  virtual ~Child() = default;  // kills it if it still runs
  virtual pid_t pid() const = 0;
  virtual void signal(int signal) = 0;
};

struct ChildEvents {
  std::function<void(const std::string& line)> on_output;  // a line or 1 MiB of one; the last may come after on_exit
  std::function<void(const std::string& json_line)> on_status;
  std::function<void(int wait_status)> on_exit;  // after the last on_status
};

// Call from the process's main thread only: the kernel ties PDEATHSIG to the thread that forked.
Result<std::unique_ptr<Child>> spawn_child(boost::asio::io_context& io, const ChildCommand& command,
                                           ChildEvents events);
std::string describe_exit(int wait_status);  // "exit code 1", "killed by signal 9 (Killed)"

// ---- in the child ----

// Whether a parent of ours started this process; else a person did, and there are no descriptors to read.
bool has_parent();
// The bytes the parent left on kSettingsFd.
Result<std::string> read_settings();
// Ends this process at once when the parent is gone.
void follow_parent(boost::asio::io_context& io);
// One line to the parent. Harmless when there is none (a process started by hand).
void report_status(const std::string& json_line);

}  // namespace manta::cluster
