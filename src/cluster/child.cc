#include "cluster/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <cerrno>
#include <utility>

#include "base/log.h"

namespace manta::cluster {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Descriptor = asio::posix::stream_descriptor;

constexpr size_t kMaxLineBytes = 1 << 20;  // of a child's output or status

Error system_error(const char* what) {
  return error(ErrorCode::kInternal, fmt::format("{}: {}", what, ::strerror(errno)));
}

// Owns a descriptor until released.
class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Result<Fd> memory_file(const std::string& content) {
  Fd fd(::memfd_create("manta-settings", MFD_CLOEXEC));
  if (fd.get() < 0) return system_error("memfd_create");
  size_t written = 0;
  while (written < content.size()) {
    const ssize_t n = ::write(fd.get(), content.data() + written, content.size() - written);
    if (n < 0) return system_error("write settings");
    written += static_cast<size_t>(n);
  }
  ::lseek(fd.get(), 0, SEEK_SET);
  return fd;
}

struct Pipe {
  Fd read, write;
};

Result<Pipe> make_pipe() {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) return system_error("pipe2");
  return Pipe{Fd(fds[0]), Fd(fds[1])};
}

// After fork: only async-signal-safe calls. Moves the three descriptors to their numbers and becomes the child.
[[noreturn]] void become(char* const argv[], char* const envp[], int settings, int lifeline, int status, int output,
                         pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // it died before the line above
  ::setpgid(0, 0);                          // Ctrl-C in a terminal is for the parent, which then drains us
  // First far away, so that none of the three is overwritten while the others move.
  const int far_settings = ::fcntl(settings, F_DUPFD, 64);
  const int far_lifeline = ::fcntl(lifeline, F_DUPFD, 64);
  const int far_status = ::fcntl(status, F_DUPFD, 64);
  if (output >= 0) {
    ::dup2(output, STDOUT_FILENO);
    ::dup2(output, STDERR_FILENO);
  }
  ::dup2(far_settings, kSettingsFd);
  ::dup2(far_lifeline, kLifelineFd);
  ::dup2(far_status, kStatusFd);
  ::close(far_settings);
  ::close(far_lifeline);
  ::close(far_status);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execve("/proc/self/exe", argv, envp);
  ::_exit(127);
}

// The strings, then a null, as exec wants them.
std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (std::string& one : strings) out.push_back(one.data());
  out.push_back(nullptr);
  return out;
}

std::vector<std::string> child_environment(const EnvMap& on_top) {
  EnvMap env = on_top;
  env.merge(read_environment());  // does not overwrite
  std::vector<std::string> out;
  for (const auto& [name, value] : env) out.push_back(fmt::format("{}={}", name, value));
  return out;
}

int open_pidfd(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
}

class ChildProcess : public Child, public std::enable_shared_from_this<ChildProcess> {
 public:
  ChildProcess(asio::io_context& io, pid_t pid, Fd lifeline, Fd status, Fd output, Fd pidfd, ChildEvents events)
      : pid_(pid),
        lifeline_(std::move(lifeline)),
        status_(io, status.release()),
        exited_(io, pidfd.release()),
        output_(io),
        on_output_(std::move(events.on_output)),
        events_(std::move(events)) {
    if (output.get() >= 0) output_.assign(output.release());
  }

  void watch() {
    read_status();
    if (output_.is_open()) read_output();
    exited_.async_wait(Descriptor::wait_read, [self = shared_from_this()](error_code ec) {
      if (!ec) self->reap();
    });
  }

  pid_t pid() const override { return pid_; }
  void signal(int signal) override {
    if (!reaped_) ::kill(pid_, signal);
  }

  void abandon() {
    events_ = {};
    if (reaped_) return;  // what it said last is still read, to its end
    on_output_ = nullptr;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    reaped_ = true;
    error_code ignored;
    status_.close(ignored);
    exited_.close(ignored);
    output_.close(ignored);
  }

 private:
  // Until its end of file: what a dying child said is what one wants to read. A line that is too long comes in pieces;
  // a child whose pipe nobody reads would block.
  void read_output() {
    asio::async_read_until(output_, asio::dynamic_buffer(output_inbox_, kMaxLineBytes), '\n',
                           [self = shared_from_this()](error_code ec, size_t n) {
                             const bool ended = !ec;
                             const bool too_long = ec == asio::error::not_found;
                             const std::string line = self->output_inbox_.substr(0, ended ? n - 1 : std::string::npos);
                             self->output_inbox_.erase(0, ended ? n : std::string::npos);
                             if (self->on_output_ && (ended || !line.empty())) self->on_output_(line);
                             if (ended || too_long) self->read_output();
                           });
  }

  void read_status() {
    asio::async_read_until(status_, asio::dynamic_buffer(inbox_, kMaxLineBytes), '\n',
                           [self = shared_from_this()](error_code ec, size_t n) {
                             if (ec) return;
                             const std::string line = self->inbox_.substr(0, n - 1);
                             self->inbox_.erase(0, n);
                             if (self->events_.on_status) self->events_.on_status(line);
                             if (!self->reaped_) self->read_status();
                           });
  }

  void reap() {
    int wait_status = 0;
    if (::waitpid(pid_, &wait_status, WNOHANG) != pid_) return;
    reaped_ = true;
    error_code ignored;
    status_.close(ignored);
    exited_.close(ignored);
    const auto on_exit = std::exchange(events_, {}).on_exit;
    if (on_exit) on_exit(wait_status);
  }

  pid_t pid_;
  Fd lifeline_;  // never written: closing it, also by dying, is the message
  Descriptor status_;
  Descriptor exited_;
  Descriptor output_;  // open when captured
  std::function<void(const std::string&)> on_output_;
  std::string output_inbox_;
  ChildEvents events_;
  std::string inbox_;
  bool reaped_ = false;
};

// What the caller owns: pending completions may keep the process object a little longer than the caller wants it.
class OwnedChild : public Child {
 public:
  explicit OwnedChild(std::shared_ptr<ChildProcess> process) : process_(std::move(process)) {}
  ~OwnedChild() override { process_->abandon(); }
  pid_t pid() const override { return process_->pid(); }
  void signal(int signal) override { process_->signal(signal); }

 private:
  std::shared_ptr<ChildProcess> process_;
};

}  // namespace

Result<std::unique_ptr<Child>> spawn_child(asio::io_context& io, const ChildCommand& command, ChildEvents events) {
  MANTA_ASSIGN(Fd settings, memory_file(command.settings));
  MANTA_ASSIGN(Pipe lifeline, make_pipe());
  MANTA_ASSIGN(Pipe status, make_pipe());
  Pipe output;
  if (command.capture_output) {
    MANTA_ASSIGN(output, make_pipe());
  }
  std::vector<std::string> args = command.args;
  args.insert(args.begin(), "manta");
  std::vector<std::string> env = child_environment(command.env);
  const std::vector<char*> argv = pointers(args), envp = pointers(env);

  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return system_error("fork");
  if (pid == 0)
    become(argv.data(), envp.data(), settings.get(), lifeline.read.get(), status.write.get(), output.write.get(),
           parent);
  Fd pidfd(open_pidfd(pid));
  if (pidfd.get() < 0) {
    const Error e = system_error("pidfd_open");
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return e;
  }
  auto process = std::make_shared<ChildProcess>(io, pid, std::move(lifeline.write), std::move(status.read),
                                                std::move(output.read), std::move(pidfd), std::move(events));
  process->watch();
  return std::unique_ptr<Child>(std::make_unique<OwnedChild>(std::move(process)));
}

std::string describe_exit(int wait_status) {
  if (WIFEXITED(wait_status)) return fmt::format("exit code {}", WEXITSTATUS(wait_status));
  if (WIFSIGNALED(wait_status)) {
    return fmt::format("killed by signal {} ({})", WTERMSIG(wait_status), ::strsignal(WTERMSIG(wait_status)));
  }
  return fmt::format("wait status {:#x}", wait_status);
}

bool has_parent() {
  return ::fcntl(kSettingsFd, F_GETFD) >= 0 && ::fcntl(kLifelineFd, F_GETFD) >= 0;
}

Result<std::string> read_settings() {
  std::string content;
  std::array<char, 4096> chunk{};
  for (;;) {
    const ssize_t n = ::read(kSettingsFd, chunk.data(), chunk.size());
    if (n < 0) {
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("settings descriptor {}: {}; this subcommand is started by `manta serve`", kSettingsFd,
                               ::strerror(errno)));
    }
    if (n == 0) break;
    content.append(chunk.data(), static_cast<size_t>(n));
  }
  ::close(kSettingsFd);
  return content;
}

void follow_parent(asio::io_context& io) {
  ::signal(SIGPIPE, SIG_IGN);
  ::fcntl(kStatusFd, F_SETFD, FD_CLOEXEC);
  if (::fcntl(kLifelineFd, F_GETFD) < 0) return;  // started by hand
  ::fcntl(kLifelineFd, F_SETFD, FD_CLOEXEC);
  auto lifeline = std::make_shared<Descriptor>(io, kLifelineFd);
  // Nothing is ever written to it: readable means end of file.
  lifeline->async_wait(Descriptor::wait_read, [lifeline](error_code ec) {
    if (ec) return;
    spdlog::error("the parent process is gone; leaving");
    ::_exit(1);
  });
}

void report_status(const std::string& json_line) {
  const std::string line = json_line + "\n";
  // A short write or a closed pipe costs a progress line, nothing else.
  [[maybe_unused]] const ssize_t n = ::write(kStatusFd, line.data(), line.size());
}

}  // namespace manta::cluster
