// Dispatch and combine between processes, against memcpy over the same bytes on all cores: tokens x top_k rows out and
// as many back, for every rank. The experts do nothing; their outputs have been written before.
//
//   ./dev bench ep_dispatch [KIND=shm] [RANKS=4] [TOKENS=128] [HIDDEN=7168] [TOP_K=8]
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ep/expert_transport.h"

namespace manta::ep {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSteps = 20, kRepeats = 5, kExpertsPerRank = 16;

struct Options {
  std::string kind = "shm";
  int ranks = 4, tokens = 128, hidden = 7168, top_k = 8;
  size_t row_bytes() const { return hidden * dtype_bytes(DType::kBF16); }
  size_t bytes_each_way() const { return static_cast<size_t>(ranks) * tokens * top_k * row_bytes(); }
};

[[noreturn]] void die(const std::string& why) {
  fmt::print(stderr, "ep_dispatch: {}\n", why);
  std::exit(1);
}

void read_whole(int fd, void* to, size_t n) {
  for (auto* at = static_cast<char*>(to); n > 0;) {
    const ssize_t got = ::read(fd, at, n);
    if (got <= 0) die("a process ended early");
    at += got;
    n -= static_cast<size_t>(got);
  }
}
void write_whole(int fd, const void* from, size_t n) {
  if (::write(fd, from, n) != static_cast<ssize_t>(n)) die("a pipe broke");
}

// Runs body(i, in, out) in n processes; talk() sees the ends of their pipes.
struct Child {
  pid_t pid;
  int to, from;
};
std::vector<Child> start(int n, const std::function<void(int i, int in, int out)>& body) {
  std::vector<Child> children;
  for (int i = 0; i < n; ++i) {
    int down[2], up[2];
    if (::pipe(down) != 0 || ::pipe(up) != 0) die("no pipes");
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      body(i, down[0], up[1]);
      std::_Exit(0);
    }
    children.push_back({pid, down[1], up[0]});
  }
  return children;
}

struct Times {
  double wall = 0, cpu = 0;  // seconds
};

double cpu_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// One timed turn: all are told to go. Wall time of the slowest; CPU time of all.
Times turn(const std::vector<Child>& children) {
  for (const Child& c : children) write_whole(c.to, "g", 1);
  Times all;
  for (const Child& c : children) {
    Times one;
    read_whole(c.from, &one, sizeof(one));
    all.wall = std::max(all.wall, one.wall);
    all.cpu += one.cpu;
  }
  return all;
}

void timed_turns(int in, int out, const std::function<void()>& body) {
  for (int i = 0; i < kRepeats; ++i) {
    char go = 0;
    read_whole(in, &go, 1);
    const auto begin = Clock::now();
    const double cpu = cpu_seconds();
    body();
    const Times times{std::chrono::duration<double>(Clock::now() - begin).count(), cpu_seconds() - cpu};
    write_whole(out, &times, sizeof(times));
  }
}

struct Address {
  char text[256] = {}, host[256] = {};
};

void rank_process(const Options& o, int rank, int in, int out) {
  TransportOptions options;
  options.kind = o.kind;
  options.layout = ExpertLayout::kMasked;
  auto transport = make_transport(options);
  if (!transport.ok()) die(transport.error().message);
  const auto peer = (*transport)->listen();
  if (!peer.ok()) die(peer.error().message);
  Address mine;
  peer->address.copy(mine.text, sizeof(mine.text) - 1);
  peer->host_id.copy(mine.host, sizeof(mine.host) - 1);
  write_whole(out, &mine, sizeof(mine));
  EpTopology topology{Epoch{1}, rank, o.ranks, {}};
  for (int r = 0; r < o.ranks; ++r) {
    Address address;
    read_whole(in, &address, sizeof(address));
    topology.peers.push_back({r, address.text, address.host});
  }
  const MoeShape shape{o.hidden, o.top_k, o.ranks * kExpertsPerRank, kExpertsPerRank, DType::kBF16};
  if (const Status s = (*transport)->configure(topology, shape, o.tokens, 1); !s.ok()) die(s.error().message);

  std::mt19937 random(rank);
  std::vector<char> hidden(o.tokens * o.row_bytes(), 1);
  std::vector<int32_t> ids, all(shape.num_physical_experts);
  std::iota(all.begin(), all.end(), 0);
  for (int t = 0; t < o.tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    ids.insert(ids.end(), all.begin(), all.begin() + o.top_k);
  }
  std::vector<float> weights(ids.size(), 0.1f), combined(static_cast<size_t>(o.tokens) * o.hidden);
  Routed routed;
  routed.hidden = make_tensor(hidden.data(), DType::kBF16, {o.tokens, o.hidden});
  routed.topk_id = make_tensor(ids.data(), DType::kI32, {o.tokens, o.top_k});
  routed.topk_weight = make_tensor(weights.data(), DType::kF32, {o.tokens, o.top_k});
  Lane lane;
  const auto step = [&](bool writes_outputs) {
    DispatchHandle& handle = (*transport)->handle(0);
    ExpertBatch batch;
    (*transport)->dispatch_start(lane, handle, routed);
    (*transport)->dispatch_finish(lane, handle, batch);
    for (int e = 0; writes_outputs && e < kExpertsPerRank; ++e) {
      std::memset(static_cast<char*>(batch.output.data) + e * batch.output.shape[1] * o.row_bytes(), 0,
                  batch.num_rows.as<int32_t>()[e] * o.row_bytes());
    }
    (*transport)->combine_start(lane, handle, batch);
    (*transport)->combine_finish(lane, handle, make_tensor(combined.data(), DType::kF32, {o.tokens, o.hidden}));
  };
  step(true);
  timed_turns(in, out, [&] {
    for (int i = 0; i < kSteps; ++i) step(false);
  });
  if (const Status s = (*transport)->status(); !s.ok()) die(s.error().message);
}

// Rows of the same size, from one buffer to another that is as large as all that a core moves in a step.
void memcpy_process(const Options& o, int cores, int in, int out) {
  const size_t rows = 2 * o.bytes_each_way() / o.row_bytes() / cores;
  std::vector<char> from(rows * o.row_bytes(), 1), to(rows * o.row_bytes(), 2);
  timed_turns(in, out, [&] {
    for (int i = 0; i < kSteps; ++i) {
      for (size_t r = 0; r < rows; ++r) {
        std::memcpy(to.data() + r * o.row_bytes(), from.data() + r * o.row_bytes(), o.row_bytes());
      }
      asm volatile("" ::"r"(to.data()) : "memory");
    }
  });
}

int main_of(const Options& o) {
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const auto ranks = start(o.ranks, [&](int rank, int in, int out) { rank_process(o, rank, in, out); });
  std::vector<Address> addresses(ranks.size());
  for (size_t r = 0; r < ranks.size(); ++r) read_whole(ranks[r].from, &addresses[r], sizeof(Address));
  for (const Child& c : ranks) write_whole(c.to, addresses.data(), addresses.size() * sizeof(Address));
  const auto copies = start(cores, [&](int, int in, int out) { memcpy_process(o, cores, in, out); });
  std::vector<double> ours, memcpys, ratios, cpu_ratios;
  for (int i = 0; i < kRepeats; ++i) {  // alternating, so that both meet the same neighbours
    const Times copied = turn(copies), moved = turn(ranks);
    memcpys.push_back(copied.wall / kSteps);
    ours.push_back(moved.wall / kSteps);
    ratios.push_back(copied.wall / moved.wall);
    cpu_ratios.push_back(copied.cpu / moved.cpu);
  }
  for (const auto& group : {ranks, copies}) {
    for (const Child& c : group) ::waitpid(c.pid, nullptr, 0);
  }
  const auto median = [](std::vector<double> v) {
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
  };
  const double gib = 2.0 * static_cast<double>(o.bytes_each_way()) / (1 << 30);
  fmt::print("dispatch + combine over {}: {} ranks, {} tokens a rank, hidden {} bf16, top_k {}, {} cores\n", o.kind,
             o.ranks, o.tokens, o.hidden, o.top_k, cores);
  fmt::print("  {:<22} {:8.3f} ms  {:6.2f} GiB/s\n", "a step of all ranks", 1e3 * median(ours), gib / median(ours));
  fmt::print("  {:<22} {:8.3f} ms  {:6.2f} GiB/s\n", "memcpy, same bytes", 1e3 * median(memcpys),
             gib / median(memcpys));
  fmt::print("  ratio {:.2f} of memcpy (median of {}, lowest {:.2f}, highest {:.2f})\n", median(ratios), kRepeats,
             *std::min_element(ratios.begin(), ratios.end()), *std::max_element(ratios.begin(), ratios.end()));
  fmt::print("  ratio {:.2f} by CPU time, which neighbours on the machine disturb less\n", median(cpu_ratios));
  return 0;
}

}  // namespace
}  // namespace manta::ep

int main(int argc, char** argv) {
  manta::ep::Options o;
  int* const numbers[] = {&o.ranks, &o.tokens, &o.hidden, &o.top_k};
  if (argc > 1) o.kind = argv[1];
  for (int i = 2; i < argc && i < 6; ++i) *numbers[i - 2] = std::max(1, std::atoi(argv[i]));
  return manta::ep::main_of(o);
}
