// What a child says reaches its parent, to the last word. The children are this binary, running the disabled tests.
#include "cluster/child.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <functional>

#include "run_until.h"

namespace manta::cluster {
namespace {

constexpr size_t kLongLine = 3 << 20;

TEST(ChildSays, DISABLED_ManyLines) {
  for (int i = 0; i < 1000; ++i) std::printf("line %d\n", i);
  std::printf("last words");
  std::fflush(stdout);
  ::_exit(3);
}

TEST(ChildSays, DISABLED_ALongLine) {
  std::printf("%s\nafter it\n", std::string(kLongLine, 'x').c_str());
  std::fflush(stdout);
  ::_exit(0);
}

class ChildTest : public ::testing::Test {
 protected:
  void spawn(const std::string& what) {
    ChildEvents events;
    events.on_output = [this](const std::string& line) { lines_.push_back(line); };
    events.on_exit = [this](int wait_status) {
      exit_status_ = wait_status;
      child_ = nullptr;  // as the supervisor does
    };
    auto child = spawn_child(io_,
                             {.args = {"--gtest_also_run_disabled_tests", "--gtest_filter=ChildSays.DISABLED_" + what},
                              .capture_output = true},
                             std::move(events));
    ASSERT_TRUE(child.ok()) << child.error().message;
    child_ = std::move(*child);
  }

  void run_until(const std::function<bool()>& done) { manta::testing::run_until(io_, done); }

  boost::asio::io_context io_;
  std::unique_ptr<Child> child_;
  std::vector<std::string> lines_;
  int exit_status_ = -1;
};

TEST_F(ChildTest, LastWordsOutliveTheChild) {
  spawn("ManyLines");
  siginfo_t ended{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child_->pid()), &ended, WEXITED | WNOWAIT), 0);
  run_until([&] { return exit_status_ >= 0; });
  EXPECT_EQ(describe_exit(exit_status_), "exit code 3");
  run_until([&] { return !lines_.empty() && lines_.back() == "last words"; });
}

TEST_F(ChildTest, ALineWithoutEndHoldsNobodyUp) {
  spawn("ALongLine");
  run_until([&] { return exit_status_ >= 0 && !lines_.empty() && lines_.back() == "after it"; });
  size_t num_x = 0;
  for (const auto& line : lines_) {
    if (line.starts_with("xxx")) num_x += line.size();
  }
  EXPECT_EQ(num_x, kLongLine);
}

}  // namespace
}  // namespace manta::cluster
