// An engine in the test's hands: it records what the server submits and aborts, and gives the tokens it is told to.
// The test's thread and the server's loops share it.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/generator.h"

namespace manta::api::testing {

using engine::FinishReason;
using engine::RequestOutput;
using engine::Submit;

class FakeEngine {
 public:
  // What every new request gets on its own; empty: nothing, the test emits.
  void set_script(std::vector<RequestOutput> outputs) {
    const std::lock_guard lock(mutex_);
    script_ = std::move(outputs);
  }
  void set_ready(bool ready) {
    const std::lock_guard lock(mutex_);
    ready_ = ready;
  }
  void set_submit_error(std::optional<Error> error) {
    const std::lock_guard lock(mutex_);
    submit_error_ = std::move(error);
  }
  // Its load differs each time somebody looks, as that of a busy one does.
  void set_restless() {
    const std::lock_guard lock(mutex_);
    restless_ = true;
  }
  std::string kv_transfer;  // as its connector describes itself
  engine::Welcome welcome{.rank = 0,
                          .pid = 42,
                          .model = "tiny",
                          .vocab_size = 4096,
                          .max_model_len = 4096,
                          .max_num_seqs = 8,
                          .num_blocks = 64,
                          .block_size = 16};

  // Waits for the i-th request since the start.
  Submit wait_submit(size_t i) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return submits_.size() > i; });
    return submits_.size() > i ? submits_[i] : Submit{};
  }
  // Waits until so many aborts have come; how many there are.
  size_t wait_aborts(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return num_aborts_ >= n; });
    return num_aborts_;
  }
  // Waits until so many requests were refused by set_submit_error(); how many there are.
  size_t wait_refusals(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return num_refusals_ >= n; });
    return num_refusals_;
  }
  size_t num_running() const {
    const std::lock_guard lock(mutex_);
    return running_.size();
  }
  size_t num_submits() const {
    const std::lock_guard lock(mutex_);
    return submits_.size();
  }

  // Any thread. Outputs of requests that are over are dropped, as an engine's late ones are.
  void emit(RequestId id, RequestOutput output) {
    const std::lock_guard lock(mutex_);
    const auto it = running_.find(id.serial);
    if (it == running_.end()) return;
    output.id = id;
    boost::asio::post(*it->second.io, [this, id, output = std::move(output)]() mutable { deliver(id, output); });
  }

  GeneratorFactory factory() {
    return [this](boost::asio::io_context& io, int, const std::string&) { return std::make_unique<Loop>(*this, io); };
  }

 private:
  static constexpr std::chrono::seconds kPatience{20};

  struct Running {
    boost::asio::io_context* io;
    Generator::OnOutput on_output;
  };

  class Loop : public Generator {
   public:
    Loop(FakeEngine& engine, boost::asio::io_context& io) : engine_(engine), io_(io) {}
    Result<RequestId> submit(Submit submit, OnOutput on_output, std::optional<int> rank) override {
      return engine_.submit(io_, std::move(submit), std::move(on_output), rank);
    }
    void abort(RequestId id) override { engine_.abort(id); }
    std::optional<engine::Welcome> model() const override { return engine_.welcome; }
    bool ready() const override {
      const std::lock_guard lock(engine_.mutex_);
      return engine_.ready_;
    }
    std::vector<engine::EngineView> engines() const override {
      engine::EngineView view;
      view.pid = 42;
      view.host = "localhost";
      view.state = ready() ? "ready" : "starting";
      view.load.num_blocks = 64;
      view.load.num_free_blocks = 48;
      view.load.num_running = engine_.look();
      view.kv_transfer = engine_.kv_transfer;
      return {view};
    }
    std::optional<int> rank_of(RequestId) const override { return 0; }
    void on_resubmit(std::function<void(int, engine::ResubmitReason)>) override {}

   private:
    FakeEngine& engine_;
    boost::asio::io_context& io_;
  };

  Result<RequestId> submit(boost::asio::io_context& io, Submit submit, Generator::OnOutput on_output,
                           std::optional<int> rank) {
    const std::lock_guard lock(mutex_);
    if (submit_error_) {
      ++num_refusals_;
      changed_.notify_all();
      return *submit_error_;
    }
    last_rank = rank;
    const RequestId id{7, ++last_serial_};
    submit.id = id;
    submits_.push_back(std::move(submit));
    running_[id.serial] = {&io, std::move(on_output)};
    for (const auto& output : script_) {
      RequestOutput copy = output;
      copy.id = id;
      boost::asio::post(io, [this, id, copy = std::move(copy)]() mutable { deliver(id, copy); });
    }
    changed_.notify_all();
    return id;
  }

  int look() {
    const std::lock_guard lock(mutex_);
    return restless_ ? ++num_looks_ : 0;
  }

  void abort(RequestId id) {
    const std::lock_guard lock(mutex_);
    running_.erase(id.serial);
    ++num_aborts_;
    changed_.notify_all();
  }

  void deliver(RequestId id, RequestOutput& output) {
    Generator::OnOutput on_output;
    {
      const std::lock_guard lock(mutex_);
      const auto it = running_.find(id.serial);
      if (it == running_.end()) return;
      on_output = it->second.on_output;
      if (output.finish != FinishReason::kNone) running_.erase(it);
    }
    on_output(std::move(output));
  }

 public:
  std::optional<int> last_rank;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = true;
  bool restless_ = false;
  int num_looks_ = 0;
  size_t num_refusals_ = 0;
  std::optional<Error> submit_error_;
  std::vector<RequestOutput> script_;
  std::deque<Submit> submits_;
  std::map<uint64_t, Running> running_;
  uint64_t last_serial_ = 0;
  size_t num_aborts_ = 0;
};

}  // namespace manta::api::testing
