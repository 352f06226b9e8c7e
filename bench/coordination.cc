// What does it cost that ranks step together?
//   manta_coordination [STEPS]
// 1. The agreement alone, 4 to 320 ranks: votes of one step and its decisions, without sockets (simulation).
// 2. A coordinator with scripted peers over unix sockets: CPU time of its thread per step, and the time from the first
//    vote to the last decision. The peers vote as soon as they hear of the step before, so the coordinator never rests.
// 3. Four engines with scripted tokens (a step takes 2 ms): time per step in lock-step, next to the same engines
//    without. Asynchronous scheduling, as in the product: the agreement should hide behind the step.
// Baselines: 1 and 2, four ranks; 3, engines for themselves. A table and one JSON line per case.
#include <fmt/format.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <future>
#include <thread>
#include <vector>

#include "base/frame_connection.h"
#include "base/log.h"
#include "cluster/agreement.h"
#include "cluster/coordinator.h"
#include "engine/engine.h"
#include "engine/server.h"
#include "exec/fake_executor.h"

namespace {

using namespace manta;
using Clock = std::chrono::steady_clock;

double us(Clock::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

double cpu_us(clockid_t clock) {  // of one thread
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

cluster::Vote vote_for(uint64_t step, int rank) {
  cluster::Vote v;
  v.step = step;
  v.has_work = rank % 8 != 7;  // some run dummy steps
  v.num_tokens = 16 + rank % 5;
  return v;
}

// ---- 1 ----

double agreement_us(int num_ranks, int num_steps) {
  cluster::Agreement agreement;
  agreement.reset(Epoch{1}, num_ranks);
  std::vector<double> times;
  for (int step = 1; step <= num_steps; ++step) {
    const auto begin = Clock::now();
    for (int rank = 0; rank < num_ranks; ++rank) {
      if (!agreement.vote(rank, Epoch{1}, vote_for(step, rank)).ok()) std::abort();
    }
    size_t bytes = 0;
    for (int rank = 0; rank < num_ranks; ++rank) bytes += encode(agreement.decision_for(rank)).size();
    if (bytes == 0) std::abort();
    times.push_back(us(Clock::now() - begin));
  }
  std::ranges::sort(times);
  return times[times.size() / 2];
}

// ---- 2 ----

std::string address(const char* what) {
  static int serial = 0;
  return fmt::format("unix:@manta-coordination-{}-{}-{}", ::getpid(), what, ++serial);
}

struct Coordination {
  double cpu_us_per_step, us_per_step;
};

// All peers on one thread: it votes for everybody, waits for every decision, votes again.
class Peers {
 public:
  // cpu: of the coordinator's thread, in us; read when the group has formed and after the last step.
  Peers(boost::asio::io_context& io, const std::string& coordinator, int num_peers, uint64_t num_steps,
        std::function<double()> cpu)
      : io_(io), cpu_(std::move(cpu)), num_steps_(num_steps), streams_(num_peers) {
    for (int rank = 0; rank < num_peers; ++rank) {
      connect_frames(io, coordinator, [this, rank](Result<FrameConnectionPtr> c) {
        if (!c.ok()) std::abort();
        streams_[rank] = *c;
        (*c)->start([this, rank](Frame&& f) { on_frame(rank, std::move(f)); }, [](const Error&) {});
        cluster::Join join;
        join.self.rank = rank;
        join.self.state = cluster::State::kReady;
        join.self.group.announced = true;
        (*c)->send(FrameKind::kJoin, {}, encode(join));
      });
    }
  }
  Clock::duration elapsed() const { return end_ - begin_; }
  double cpu_us() const { return cpu_end_ - cpu_begin_; }

 private:
  void on_frame(int rank, Frame&& frame) {
    if (frame.kind == FrameKind::kMembership) {
      const auto m = cluster::decode_membership(frame.payload);
      if (!m.ok() || m->members.size() < streams_.size() || rank != static_cast<int>(streams_.size()) - 1) return;
      epoch_ = frame.epoch;
      if (step_ == 0) {
        begin_ = Clock::now();
        cpu_begin_ = cpu_();
        vote();
      }
    } else if (frame.kind == FrameKind::kDecision && ++num_heard_ == streams_.size()) {
      num_heard_ = 0;
      if (step_ < num_steps_) return vote();
      end_ = Clock::now();
      cpu_end_ = cpu_();
      io_.stop();
    }
  }
  void vote() {
    ++step_;
    for (size_t rank = 0; rank < streams_.size(); ++rank) {
      streams_[rank]->send_now(FrameKind::kVote, epoch_, encode(vote_for(step_, static_cast<int>(rank))));
    }
  }

  boost::asio::io_context& io_;
  std::function<double()> cpu_;
  double cpu_begin_ = 0, cpu_end_ = 0;
  uint64_t num_steps_, step_ = 0;
  size_t num_heard_ = 0;
  Epoch epoch_;
  std::vector<FrameConnectionPtr> streams_;
  Clock::time_point begin_, end_;
};

Coordination coordinate(int num_peers, int num_steps) {
  const std::string at = address("coordinator");
  boost::asio::io_context io;
  cluster::CoordinatorOptions options;
  options.deadlines = {std::chrono::hours(1), std::chrono::hours(1), std::chrono::hours(1)};
  options.group_size = num_peers;
  auto coordinator = cluster::Coordinator::open(io, at, options);
  if (!coordinator.ok()) std::abort();
  std::thread thread([&] {
    ::pthread_setname_np(::pthread_self(), "coordinator");  // for profilers
    io.run();
  });
  clockid_t clock{};
  if (::pthread_getcpuclockid(thread.native_handle(), &clock) != 0) std::abort();
  boost::asio::io_context peers_io;
  Peers peers(peers_io, at, num_peers, num_steps, [clock] { return cpu_us(clock); });
  peers_io.run();
  io.stop();
  thread.join();
  return {peers.cpu_us() / num_steps, us(peers.elapsed()) / num_steps};
}

// ---- 3 ----

// One engine with its door, as a process has them.
class Node {
 public:
  Node(int rank, const std::string& coordinator, int group_size, std::chrono::microseconds step) {
    exec::FakeExecutorOptions fake;
    fake.geometry.num_blocks = 1024;
    fake.geometry.block_size = 16;
    fake.step_duration = step;
    fake.ep_rank = group_size > 0 ? rank : -1;
    engine::ServerOptions options;
    options.rank = rank;
    options.listen = address("engine");
    options.coordinator = coordinator;
    options.group_size = group_size;
    options.log_stats = false;
    options.on_refused = [](const std::string&) { std::abort(); };
    server_ = std::move(engine::Server::open(io_, options)).value();
    io_thread_ = std::thread([this] { io_.run(); });
    sched::SchedulerOptions scheduler;
    scheduler.num_blocks = 1024;
    scheduler.block_size = 16;
    engine::EngineOptions engine_options;
    engine_options.rank = rank;
    engine_options.max_num_plans = 2;
    engine_options.on_serving = [this] { serving_.set_value(); };
    engine_ = std::make_unique<engine::Engine>(engine_options, std::move(sched::Scheduler::make(scheduler)).value(),
                                               std::make_unique<exec::FakeExecutor>(fake), nullptr,
                                               [this](uint64_t, engine::Outputs&& outputs) {
                                                 for (const auto& r : outputs.requests)
                                                   num_unfinished_ -= r.finish != sched::FinishReason::kNone;
                                                 num_unfinished_.notify_all();
                                               });
    server_->ready(*engine_, {});
    thread_ = std::thread([this] {
      if (!engine_->run().ok()) std::abort();
    });
  }
  ~Node() {
    engine_->stop();
    thread_.join();
    io_.stop();
    io_thread_.join();
  }
  void wait_until_serving() { serving_.get_future().wait(); }
  void submit(int num_requests, int max_tokens) {
    num_unfinished_ += num_requests;
    for (int i = 0; i < num_requests; ++i) {
      engine::Submit s;
      s.id = {1, ++serial_};
      s.tokens = {1, 2, 3, 4};
      s.num_prompt_tokens = 4;
      s.sampling.max_tokens = max_tokens;
      engine_->submit(std::move(s));
    }
  }
  void wait() {
    for (int n = num_unfinished_; n > 0; n = num_unfinished_) num_unfinished_.wait(n);
  }
  engine::Load load() const { return engine_->snapshot().load; }

 private:
  boost::asio::io_context io_;
  std::unique_ptr<engine::Server> server_;
  std::unique_ptr<engine::Engine> engine_;
  std::thread io_thread_, thread_;
  std::promise<void> serving_;
  std::atomic<int> num_unfinished_{0};
  uint64_t serial_ = 0;
};

struct Stepping {
  double us_per_step, wait_us_per_step;
};

Stepping step_engines(int num_engines, bool together, int num_steps) {
  const std::string at = address("coordinator");
  boost::asio::io_context io;
  cluster::CoordinatorOptions options;
  options.group_size = together ? num_engines : 0;
  auto coordinator = std::move(cluster::Coordinator::open(io, at, options)).value();
  std::thread thread([&io] { io.run(); });
  std::vector<std::unique_ptr<Node>> nodes;
  for (int rank = 0; rank < num_engines; ++rank) {
    nodes.push_back(std::make_unique<Node>(rank, at, options.group_size, std::chrono::microseconds(2000)));
  }
  for (auto& node : nodes) node->wait_until_serving();
  const auto begin = Clock::now();
  for (auto& node : nodes) node->submit(4, num_steps);
  for (auto& node : nodes) node->wait();
  const double each = us(Clock::now() - begin) / num_steps;
  const double waited = static_cast<double>(nodes[0]->load().agree_wait_us) / num_steps;
  nodes.clear();
  io.stop();
  thread.join();
  return {each, waited};
}

}  // namespace

int main(int argc, char** argv) {
  const int num_steps = argc > 1 ? std::max(10, std::atoi(argv[1])) : 1000;
  spdlog::set_level(spdlog::level::err);
  fmt::print("1. the agreement alone, {} steps\n{:>6} {:>12} {:>16}\n", num_steps, "ranks", "us a step", "ratio to 4");
  double base = 0;
  for (const int ranks : {4, 16, 32, 64, 128, 256, 320}) {
    const double t = agreement_us(ranks, num_steps);
    if (ranks == 4) base = t;
    fmt::print("{:>6} {:>12.1f} {:>16.2f}\n", ranks, t, t / base);
    fmt::print("{{\"bench\":\"coordination\",\"case\":\"agreement\",\"ranks\":{},\"us_per_step\":{:.2f}}}\n", ranks, t);
  }
  fmt::print("\n2. a coordinator and scripted peers over unix sockets\n{:>6} {:>22} {:>18}\n", "peers",
             "coordinator CPU us", "round trip us");
  for (const int peers : {4, 16, 32, 64, 128, 320}) {
    const Coordination c = coordinate(peers, num_steps);
    fmt::print("{:>6} {:>22.1f} {:>18.1f}\n", peers, c.cpu_us_per_step, c.us_per_step);
    fmt::print(
        "{{\"bench\":\"coordination\",\"case\":\"coordinator\",\"ranks\":{},\"cpu_us_per_step\":{:.1f},"
        "\"round_trip_us\":{:.1f}}}\n",
        peers, c.cpu_us_per_step, c.us_per_step);
  }
  fmt::print("\n3. four engines, a step of 2000 us\n");
  const Stepping alone = step_engines(4, false, num_steps), together = step_engines(4, true, num_steps);
  fmt::print("for themselves {:.1f} us a step; together {:.1f}: {:.1f} added; the device waited {:.1f} of them\n",
             alone.us_per_step, together.us_per_step, together.us_per_step - alone.us_per_step,
             together.wait_us_per_step);
  fmt::print(
      "{{\"bench\":\"coordination\",\"case\":\"engines\",\"ranks\":4,\"alone_us\":{:.1f},\"together_us\":{:.1f},"
      "\"added_us\":{:.1f},\"device_waited_us\":{:.1f}}}\n",
      alone.us_per_step, together.us_per_step, together.us_per_step - alone.us_per_step, together.wait_us_per_step);
  return 0;
}
