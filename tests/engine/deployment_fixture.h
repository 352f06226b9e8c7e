// A whole deployment inside a test: coordinator, engines with a FakeExecutor, a front-end, each on a loop of its own
// thread as in the product's processes. Waits are for conditions; a generous bound turns a hang into a failure.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "cluster/coordinator.h"
#include "engine/client.h"
#include "engine/engine.h"
#include "engine/scheduler_options.h"
#include "engine/server.h"
#include "exec/fake_executor.h"

namespace manta::engine {

// An io_context with its thread.
class Loop {
 public:
  Loop()
      : io_(std::make_unique<boost::asio::io_context>()), work_(io_->get_executor()), thread_([this] { io_->run(); }) {}
  ~Loop() { stop(); }
  boost::asio::io_context& io() { return *io_; }
  void stop() {
    if (io_) io_->stop();
    if (thread_.joinable()) thread_.join();
  }
  // Runs f on the loop and returns what it gives.
  template <typename F>
  auto call(F f) {
    std::packaged_task<decltype(f())()> task(std::move(f));
    auto result = task.get_future();
    boost::asio::post(*io_, [&task] { task(); });
    return result.get();
  }
  // After stop(): closes every socket that waiting handlers still hold, as the end of a process does.
  void destroy() {
    work_.reset();
    io_ = nullptr;
  }

 private:
  std::unique_ptr<boost::asio::io_context> io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

inline std::string unique_address(const std::string& what) {
  static int serial = 0;
  return "unix:@manta-engine-test-" + std::to_string(::getpid()) + "-" + std::to_string(++serial) + "-" + what;
}

struct CoordinatorNode {
  explicit CoordinatorNode(std::string at, cluster::CoordinatorOptions options = {}) : address(std::move(at)) {
    loop.call([&] {
      auto opened = cluster::Coordinator::open(loop.io(), address, options);
      ASSERT_TRUE(opened.ok()) << opened.error().message;
      coordinator = std::move(*opened);
    });
  }
  ~CoordinatorNode() {
    loop.stop();
    coordinator = nullptr;
    loop.destroy();
  }
  std::string address;
  Loop loop;
  std::unique_ptr<cluster::Coordinator> coordinator;
};

inline std::unique_ptr<sched::Scheduler> make_scheduler(const exec::ExecutorInfo& info) {
  auto scheduler = sched::Scheduler::make(scheduler_options(info));
  EXPECT_TRUE(scheduler.ok()) << scheduler.error().message;
  return std::move(*scheduler);
}

inline exec::FakeExecutorOptions fake_options() {
  exec::FakeExecutorOptions options;
  options.geometry.num_blocks = 256;
  options.geometry.block_size = 16;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 1024;
  for (int i = 0; i < 97; ++i) options.script.push_back(100 + i);
  return options;
}

// One engine "process". kill() drops it as kill -9 would: sockets close, nothing is said.
class EngineNode {
 public:
  // group_size > 0: one of the ranks that step together.
  EngineNode(int rank, const std::string& coordinator, exec::FakeExecutorOptions fake = fake_options(),
             int group_size = 0) {
    if (group_size > 0) fake.ep_rank = rank;
    ServerOptions options;
    options.group_size = group_size;
    options.rank = rank;
    options.listen = address_ = unique_address("engine");
    options.coordinator = coordinator;
    options.host = "test";
    options.on_refused = [](const std::string& reason) { ADD_FAILURE() << reason; };
    loop_.call([&] {
      auto server = Server::open(loop_.io(), options);
      ASSERT_TRUE(server.ok()) << server.error().message;
      server_ = std::move(*server);
    });
    auto executor = std::make_unique<exec::FakeExecutor>(fake);
    this->fake = executor.get();
    Welcome welcome;
    welcome.rank = rank;
    welcome.max_model_len = fake.max_model_len;
    welcome.vocab_size = fake.vocab_size;
    auto scheduler = make_scheduler(executor->info());
    EngineOptions engine_options;
    engine_options.rank = rank;
    engine_options.max_num_plans = 2;
    engine_ = std::make_unique<Engine>(
        engine_options, std::move(scheduler), std::move(executor), /*grammars=*/nullptr,
        [this](uint64_t client, Outputs&& outputs) { server_->deliver(client, std::move(outputs)); });
    server_->ready(*engine_, welcome);
    thread_ = std::thread([this] {
      status = engine_->run();
      ended = true;
    });
  }
  ~EngineNode() { kill(); }

  void kill() {
    if (!thread_.joinable()) return;
    loop_.stop();
    fake->unstall();
    engine_->stop();
    thread_.join();
    server_ = nullptr;
    loop_.destroy();
  }
  void drain() {
    loop_.call([this] { server_->drain(); });
    engine_->drain();
    thread_.join();
    std::promise<void> closed;
    loop_.call([&] { server_->close([&closed] { closed.set_value(); }); });
    closed.get_future().wait();
    loop_.stop();
    server_ = nullptr;
  }
  Engine& engine() { return *engine_; }
  const std::string& address() const { return address_; }

  exec::FakeExecutor* fake = nullptr;
  Status status;  // of the engine's run(), once ended
  std::atomic<bool> ended{false};

 private:
  std::string address_;
  Loop loop_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Engine> engine_;
  std::thread thread_;
};

// A front-end, and what its requests got.
class FrontEndNode {
 public:
  struct Answer {
    std::vector<TokenId> tokens;
    FinishReason finish = FinishReason::kNone;
    std::string error;
    int num_outputs = 0;
  };

  explicit FrontEndNode(const std::string& coordinator) {
    loop_.call([&] {
      client_ = std::make_unique<EngineClient>(loop_.io(), ClientOptions{coordinator, "test front-end"});
      client_->start([this] { notify(); });
    });
  }
  ~FrontEndNode() {
    loop_.call([this] { client_ = nullptr; });
    loop_.stop();
  }

  RequestId submit(int num_prompt_tokens, int max_tokens, std::optional<int> rank = {}) {
    return loop_.call([&] {
      Submit s;
      for (int i = 0; i < num_prompt_tokens; ++i) s.tokens.push_back(i % 50);
      s.num_prompt_tokens = num_prompt_tokens;
      s.sampling.max_tokens = max_tokens;
      auto id = client_->submit(
          std::move(s), [this](RequestOutput&& out) { on_output(std::move(out)); }, rank);
      EXPECT_TRUE(id.ok()) << id.error().message;
      return id.ok() ? *id : RequestId{};
    });
  }
  void abort(RequestId id) {
    loop_.call([&] { client_->abort(id); });
  }
  std::vector<EngineView> engines() {
    return loop_.call([this] { return client_->engines(); });
  }

  void wait_for_engines(size_t n) {
    wait([&] {
      size_t ready = 0;
      for (const auto& e : engines()) ready += e.state == "ready";
      return ready == n;
    });
  }
  Answer wait_for_end(RequestId id) {
    wait([&] { return answer(id).finish != FinishReason::kNone; });
    return answer(id);
  }
  void wait_for_tokens(RequestId id, size_t n) {
    wait([&] { return answer(id).tokens.size() >= n; });
  }
  Answer answer(RequestId id) {
    const std::lock_guard lock(mutex_);
    return answers_[id];
  }
  void wait(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition()) {
      std::unique_lock lock(mutex_);
      const uint64_t seen = changes_;
      // Conditions may also depend on what nobody notifies: look again now and then.
      changed_.wait_for(lock, std::chrono::milliseconds(20), [&] { return changes_ != seen; });
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "condition not reached";
    }
  }

 private:
  void notify() {
    const std::lock_guard lock(mutex_);
    ++changes_;
    changed_.notify_all();
  }
  void on_output(RequestOutput&& out) {
    const std::lock_guard lock(mutex_);
    Answer& a = answers_[out.id];
    EXPECT_EQ(a.finish, FinishReason::kNone) << "an output after the last";
    a.tokens.insert(a.tokens.end(), out.tokens.begin(), out.tokens.end());
    a.finish = out.finish;
    a.error = out.error_message;
    ++a.num_outputs;
    ++changes_;
    changed_.notify_all();
  }

  Loop loop_;
  std::unique_ptr<EngineClient> client_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t changes_ = 0;
  std::map<RequestId, Answer> answers_;
};

}  // namespace manta::engine
