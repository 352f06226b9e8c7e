// combine(dispatch(x)) of every transport between processes against loopback, bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <numeric>

#include "ep/group/dial.h"
#include "ep/group/handshake.h"
#include "ep/host.h"
#include "transport_ranks.h"

namespace manta::ep {
namespace {

using ::testing::HasSubstr;
using testing::Microbatch;
using testing::Ranks;
using testing::RankStep;
using testing::Routing;

enum class Fabric { kShm, kTcp, kMixed };

struct Case {
  Fabric fabric;
  ExpertLayout layout;
  DType wire;
  int size;
};

std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  const char* fabrics[] = {"Shm", "Tcp", "Mixed"};
  return std::string(fabrics[static_cast<int>(info.param.fabric)]) +
         (info.param.layout == ExpertLayout::kContiguous ? "Contiguous" : "Masked") +
         (info.param.wire == DType::kF32 ? "F32" : "Bf16") + "Ep" + std::to_string(info.param.size);
}

class Transports : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int kLocal = 3, kTopK = 3, kHidden = 12, kRound = 8;

  Ranks make(int num_microbatches = 1) {
    const Case& c = GetParam();
    TransportOptions options;
    const char* kinds[] = {"shm", "tcp", "auto"};
    options.kind = kinds[static_cast<int>(c.fabric)];
    options.connect_deadline = std::chrono::seconds(30);
    Ranks ranks = Ranks::make(c.size, options, c.layout, c.fabric == Fabric::kMixed);
    ranks.shape = {kHidden, kTopK, c.size * kLocal, kLocal, c.wire};
    ranks.round_tokens = kRound;
    ranks.num_microbatches = num_microbatches;
    return ranks;
  }

  // Distinct experts of all ranks.
  Routing anywhere() const {
    return [experts = GetParam().size * kLocal](std::mt19937& random) {
      std::vector<int32_t> ids(experts);
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end(), random);
      ids.resize(kTopK);
      return ids;
    };
  }

  // Every rank runs its steps, a layer each; tokens(rank, step, random) and routing(random) say what they are.
  void check(Ranks& ranks, int steps, const std::function<int(int, int, std::mt19937&)>& tokens,
             const Routing& routing) {
    Ranks::each(ranks.topology.size, [&](int rank) {
      std::mt19937 random(rank * 1000 + 17);
      Microbatch microbatch = ranks.microbatch(rank, 0);
      for (int s = 0; s < steps; ++s) {
        const RankStep step = testing::random_step(random, ranks.shape, tokens(rank, s, random), routing);
        microbatch.start(step, s);
        microbatch.experts();
        microbatch.finish();
        ASSERT_TRUE(ranks.transports[rank]->status().ok()) << ranks.transports[rank]->status().error().message;
        const std::vector<float> expected = testing::loopback_result(step, ranks.shape, GetParam().layout);
        ASSERT_TRUE(expected.empty() ||
                    std::memcmp(microbatch.out.data(), expected.data(), expected.size() * sizeof(float)) == 0)
            << "rank " << rank << " step " << s << " tokens " << step.tokens;
      }
    });
  }
};

TEST_P(Transports, RandomRoutingInRounds) {
  Ranks ranks = make();
  ranks.configure(Epoch{1});
  // 0 … 3 rounds, other numbers on every rank.
  check(
      ranks, 12, [](int, int, std::mt19937& random) { return static_cast<int>(random() % 25); }, anywhere());
}

TEST_P(Transports, OneExpertTakesAll) {
  Ranks ranks = make();
  ranks.configure(Epoch{1});
  // The last expert is every token's first; the others stay on its rank: several rows of a token for one rank.
  const int last = ranks.shape.num_physical_experts - 1;
  check(
      ranks, 3, [](int, int, std::mt19937&) { return kRound; },
      [last](std::mt19937&) {
        return std::vector<int32_t>{last, last - 2, last - 1};
      });
}

TEST_P(Transports, EmptyRanksAndPaddingRows) {
  Ranks ranks = make();
  ranks.configure(Epoch{1});
  const Routing routing = anywhere();
  check(
      ranks, 6, [](int rank, int step, std::mt19937&) { return (rank + step) % 2 == 0 ? 0 : kRound; },
      [&](std::mt19937& random) {
        std::vector<int32_t> ids = routing(random);
        if (random() % 3 == 0) ids.assign(kTopK, -1);
        return ids;
      });
}

TEST_P(Transports, OnlyTheLastRankHasTokens) {
  Ranks ranks = make();
  ranks.configure(Epoch{1});
  check(
      ranks, 2, [&](int rank, int, std::mt19937&) { return rank == GetParam().size - 1 ? 3 * kRound : 0; }, anywhere());
}

TEST_P(Transports, ImpossibleRoutingIsAFaultOfAllRanks) {
  Ranks ranks = make();
  ranks.configure(Epoch{1});
  Ranks::each(ranks.topology.size, [&](int rank) {
    std::mt19937 random(rank);
    RankStep step = testing::random_step(random, ranks.shape, 2, anywhere());
    if (rank == 0) step.ids[1] = ranks.shape.num_physical_experts;
    Microbatch microbatch = ranks.microbatch(rank, 0);
    microbatch.start(step, 1);
    microbatch.experts();
    microbatch.finish();
    const Status status = ranks.transports[rank]->status();
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(status.error().message, HasSubstr(rank == 0 ? "was routed to" : "EP rank 0 of"));
  });
}

TEST_P(Transports, TwoMicrobatchesInFlight) {
  Ranks ranks = make(2);
  ranks.configure(Epoch{1});
  Ranks::each(ranks.topology.size, [&](int rank) {
    std::mt19937 random(rank);
    Microbatch a = ranks.microbatch(rank, 0), b = ranks.microbatch(rank, 1);
    RankStep step_a, step_b;
    const auto expect = [&](const Microbatch& m, const RankStep& step) {
      EXPECT_EQ(m.out, testing::loopback_result(step, ranks.shape, GetParam().layout));
    };
    for (int layer = 0; layer < 6; ++layer) {  // the order of model/overlap
      step_a = testing::random_step(random, ranks.shape, static_cast<int>(random() % 20), anywhere());
      a.start(step_a, layer);
      if (layer > 0) b.finish(), expect(b, step_b);
      step_b = testing::random_step(random, ranks.shape, static_cast<int>(random() % 20), anywhere());
      b.start(step_b, layer);
      a.experts();
      b.experts();
      a.finish();
      expect(a, step_a);
    }
    b.finish();
    expect(b, step_b);
    EXPECT_TRUE(ranks.transports[rank]->status().ok());
  });
}

TEST_P(Transports, TrafficCountsWhatCrossesRanks) {
  Ranks ranks = make();
  ranks.configure(Epoch{1});
  check(
      ranks, 1, [](int, int, std::mt19937&) { return 4; },
      [](std::mt19937&) {
        return std::vector<int32_t>{0, 1, 2};
      });  // all of rank 0: one row a token
  for (int r = 0; r < ranks.topology.size; ++r) {
    const Traffic traffic = ranks.transports[r]->traffic();
    EXPECT_EQ(traffic.rows, r == 0 ? 0u : 4u);
    EXPECT_EQ(traffic.bytes, traffic.rows * kHidden * dtype_bytes(ranks.shape.wire_dtype));
  }
}

TEST_P(Transports, ALostPeerIsNamedAndTheGroupFormsAgain) {
  if (GetParam().size < 2) GTEST_SKIP();
  Ranks ranks = make();
  ranks.configure(Epoch{1});
  const int lost = ranks.topology.size / 2;
  Ranks::each(ranks.topology.size, [&](int rank) {
    if (rank == lost) {
      ranks.transports[rank].reset();
      return;
    }
    std::mt19937 random(rank);
    Microbatch microbatch = ranks.microbatch(rank, 0);
    const RankStep step = testing::random_step(random, ranks.shape, kRound, anywhere());
    microbatch.start(step, 5);
    microbatch.experts();
    microbatch.finish();
    const Status status = ranks.transports[rank]->status();
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(status.error().message, HasSubstr("EP rank " + std::to_string(lost) + " of"));
    EXPECT_THAT(status.error().message, HasSubstr("closed its connection"));
  });
  TransportOptions options;
  const char* kinds[] = {"shm", "tcp", "auto"};
  options.kind = kinds[static_cast<int>(GetParam().fabric)];
  Ranks replacement = Ranks::make(1, options, GetParam().layout);
  const std::string host = ranks.topology.peers[lost].host_id;
  ranks.transports[lost] = std::move(replacement.transports[0]);
  ranks.topology.peers[lost] = replacement.topology.peers[0];
  ranks.topology.peers[lost].rank = lost;
  ranks.topology.peers[lost].host_id = host;
  ranks.configure(Epoch{2});
  check(
      ranks, 4, [](int, int, std::mt19937& random) { return static_cast<int>(random() % 20); }, anywhere());
}

TEST_P(Transports, AbortEndsEveryWait) {
  if (GetParam().size < 2) GTEST_SKIP();
  Ranks ranks = make();
  ranks.configure(Epoch{3});
  std::atomic<int> waiting{0};
  std::thread aborter([&] {
    while (waiting < ranks.topology.size - 1) std::this_thread::yield();
    for (auto& transport : ranks.transports) transport->abort(Epoch{4});
  });
  Ranks::each(ranks.topology.size - 1, [&](int rank) {  // the last one never comes
    std::mt19937 random(rank);
    Microbatch microbatch = ranks.microbatch(rank, 0);
    const RankStep step = testing::random_step(random, ranks.shape, kRound, anywhere());
    microbatch.start(step, 2);
    ++waiting;
    microbatch.experts();
    microbatch.finish();
    const Status status = ranks.transports[rank]->status();
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kAborted);
    EXPECT_THAT(status.error().message, HasSubstr("epoch 3 is over, 4 is the current one"));
  });
  aborter.join();
  EXPECT_EQ(ranks.configure_rank(0, Epoch{3}).error().code, ErrorCode::kAborted);
  ranks.configure(Epoch{4});
  check(
      ranks, 2, [](int, int, std::mt19937&) { return 5; }, anywhere());
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const Fabric fabric : {Fabric::kShm, Fabric::kTcp, Fabric::kMixed}) {
    for (const ExpertLayout layout : {ExpertLayout::kContiguous, ExpertLayout::kMasked}) {
      for (const int size : {1, 2, 3, 4, 8, 16}) {
        out.push_back({fabric, layout, size % 2 == 0 ? DType::kBF16 : DType::kF32, size});
      }
    }
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(All, Transports, ::testing::ValuesIn(cases()), name_of);

// ---- forming a group -----------------------------------------------------------------------------------------------

Ranks two(const char* kind, std::chrono::milliseconds connect_deadline = std::chrono::seconds(30)) {
  TransportOptions options;
  options.kind = kind;
  options.connect_deadline = connect_deadline;
  Ranks ranks = Ranks::make(2, options, ExpertLayout::kMasked);
  ranks.shape = {8, 2, 4, 2, DType::kBF16};
  ranks.round_tokens = 4;
  return ranks;
}

void write_text(int fd, const std::string& text) {
  ASSERT_EQ(::write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
}
std::string read_text(int fd) {
  char text[512];
  const ssize_t n = ::read(fd, text, sizeof(text));
  return n > 0 ? std::string(text, static_cast<size_t>(n)) : "";
}

class Forming : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, Forming, ::testing::Values("shm", "tcp"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(Forming, AStaleRankIsToldTheCurrentEpoch) {
  Ranks ranks = two(GetParam());
  ranks.configure(Epoch{7});
  const Status stale = ranks.configure_rank(1, Epoch{6});
  ASSERT_FALSE(stale.ok());
  EXPECT_EQ(stale.error().code, ErrorCode::kAborted);
  EXPECT_THAT(stale.error().message, HasSubstr("is at epoch 7, this rank at 6"));
  ranks.configure(Epoch{8});
}

TEST_P(Forming, AnEarlyRankWaitsForTheOther) {
  Ranks ranks = two(GetParam());
  ranks.configure(Epoch{1});
  std::thread early([&] { EXPECT_TRUE(ranks.configure_rank(1, Epoch{2}).ok()); });
  EXPECT_TRUE(ranks.configure_rank(0, Epoch{2}).ok());
  early.join();
}

TEST_P(Forming, WhoDoesNotComeIsNamed) {
  Ranks ranks = two(GetParam(), std::chrono::milliseconds(50));
  const Status alone = ranks.configure_rank(0, Epoch{1});
  ASSERT_FALSE(alone.ok());
  EXPECT_EQ(alone.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_THAT(alone.error().message, HasSubstr("EP rank 1 of 2 did not come"));
  // And the one that connects: nobody serves its epoch.
  const Status other = ranks.configure_rank(1, Epoch{2});
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_THAT(other.error().message, HasSubstr("EP rank 0 of 2"));
}

TEST_P(Forming, AnotherShapeIsRefusedByName) {
  Ranks ranks = two(GetParam());
  std::thread other([&] {
    MoeShape shape = ranks.shape;
    shape.hidden_size = 16;
    EpTopology mine = ranks.topology;
    mine.epoch = Epoch{1};
    mine.rank = 1;
    const Status status = ranks.transports[1]->configure(mine, shape, 4, 1);
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(status.error().message, HasSubstr("hidden_size 16 there, 8 here"));
  });
  const Status status = ranks.configure_rank(0, Epoch{1});
  other.join();
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message, HasSubstr("hidden_size 16 there, 8 here"));
}

TEST_P(Forming, AbortEndsConfigure) {
  Ranks ranks = two(GetParam());
  for (const int rank : {0, 1}) {
    std::thread aborter([&] { ranks.transports[rank]->abort(Epoch{10 + static_cast<uint64_t>(rank)}); });
    const Status status = ranks.configure_rank(rank, Epoch{9});
    aborter.join();
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kAborted);
  }
}

TEST_P(Forming, ALateHalfNamesWhoIsMissing) {
  TransportOptions options;
  options.kind = GetParam();
  options.wait_deadline = std::chrono::milliseconds(30);
  Ranks ranks = Ranks::make(2, options, ExpertLayout::kContiguous);
  ranks.shape = {8, 2, 4, 2, DType::kBF16};
  ranks.round_tokens = 4;
  ranks.configure(Epoch{1});
  std::mt19937 random(1);
  const RankStep step = testing::random_step(random, ranks.shape, 2, [](std::mt19937&) {
    return std::vector<int32_t>{0, 3};
  });
  Microbatch microbatch = ranks.microbatch(0, 0);
  microbatch.start(step, 4);
  microbatch.experts();
  microbatch.finish();
  const Status status = ranks.transports[0]->status();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_THAT(status.error().message, HasSubstr("EP rank 1 did not arrive within 30 ms"));
  EXPECT_THAT(status.error().message, HasSubstr("rank 0 in dispatch_finish of MoE layer 4"));
}

// A process per rank; the parent is rank 0.
TEST_P(Forming, AKilledProcessIsNamedAndLeavesNothing) {
  const auto entries = [](const char* folder) {
    const auto all = std::filesystem::directory_iterator(folder);
    return std::distance(begin(all), end(all));
  };
  const auto num_fds = entries("/proc/self/fd"), num_shm = entries("/dev/shm");
  TransportOptions options;
  options.kind = GetParam();
  int addresses[2], topology[2];
  ASSERT_EQ(::pipe(addresses), 0);
  ASSERT_EQ(::pipe(topology), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  const auto steps = [&](Ranks& ranks, int rank, int count) {
    std::mt19937 random(rank);
    Microbatch microbatch = ranks.microbatch(rank, 0);
    for (int s = 0; s < count && ranks.transports[rank]->status().ok(); ++s) {
      const RankStep step = testing::random_step(random, ranks.shape, 3, [](std::mt19937&) {
        return std::vector<int32_t>{0, 3};
      });
      microbatch.start(step, s);
      microbatch.experts();
      microbatch.finish();
    }
  };
  const auto configured = [&](Ranks& ranks, int rank) {
    ranks.shape = {8, 2, 4, 2, DType::kBF16};
    ranks.round_tokens = 4;
    return ranks.configure_rank(rank, Epoch{1});
  };
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    Ranks mine = Ranks::make(1, options, ExpertLayout::kMasked);
    mine.transports.insert(mine.transports.begin(), nullptr);
    write_text(addresses[1], mine.topology.peers[0].address);
    const std::string other = read_text(topology[0]);
    mine.topology.size = 2;
    mine.topology.peers = {{0, other, host_id()}, {1, mine.topology.peers[0].address, host_id()}};
    if (configured(mine, 1).ok()) steps(mine, 1, 3);
    ::kill(::getpid(), SIGKILL);
  }
  {
    Ranks ranks = Ranks::make(1, options, ExpertLayout::kMasked);
    const std::string other = read_text(addresses[0]);
    write_text(topology[1], ranks.topology.peers[0].address);
    ranks.topology.size = 2;
    ranks.topology.peers.push_back({1, other, host_id()});
    ASSERT_TRUE(configured(ranks, 0).ok());
    steps(ranks, 0, 1000);
    const Status status = ranks.transports[0]->status();
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(status.error().message, HasSubstr("EP rank 1 of 2"));
    EXPECT_THAT(status.error().message, HasSubstr("closed its connection"));
  }
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
  for (const int fd : {addresses[0], addresses[1], topology[0], topology[1]}) ::close(fd);
  EXPECT_EQ(entries("/proc/self/fd"), num_fds);
  EXPECT_EQ(entries("/dev/shm"), num_shm);
}

TEST(Transport, RanksInDifferentLayersFailInsteadOfMixingRows) {
  Ranks ranks = two("shm");
  ranks.configure(Epoch{1});
  std::atomic<int> named{0};
  Ranks::each(2, [&](int rank) {
    std::mt19937 random(rank);
    const RankStep step = testing::random_step(random, ranks.shape, 2, [](std::mt19937&) {
      return std::vector<int32_t>{0, 3};
    });
    Microbatch microbatch = ranks.microbatch(rank, 0);
    microbatch.start(step, rank);
    microbatch.experts();
    microbatch.finish();
    const Status status = ranks.transports[rank]->status();
    ASSERT_FALSE(status.ok());
    named += status.error().message.find("the ranks' steps differ") != std::string::npos;
  });
  EXPECT_GE(named, 1);  // the other one may see the connection close first
}

TEST(Transport, DelayedRowsAreTheSameRows) {
  TransportOptions options;
  options.kind = "shm";
  options.delay = std::chrono::microseconds(500);
  Ranks ranks = Ranks::make(2, options, ExpertLayout::kMasked);
  ranks.shape = {8, 2, 4, 2, DType::kBF16};
  ranks.round_tokens = 4;
  ranks.configure(Epoch{1});
  Ranks::each(2, [&](int rank) {
    std::mt19937 random(rank);
    const RankStep step = testing::random_step(random, ranks.shape, 7, [](std::mt19937&) {
      return std::vector<int32_t>{1, 2};
    });
    Microbatch microbatch = ranks.microbatch(rank, 0);
    const auto start = std::chrono::steady_clock::now();
    microbatch.start(step, 0);
    microbatch.experts();
    microbatch.finish();
    EXPECT_GE(std::chrono::steady_clock::now() - start, 4 * options.delay);  // two rounds of two halves
    EXPECT_EQ(microbatch.out, testing::loopback_result(step, ranks.shape, ExpertLayout::kMasked));
  });
}

TEST(Transport, AbortEndsADelay) {
  TransportOptions options;
  options.delay = std::chrono::hours(10);
  Ranks ranks = Ranks::make(1, options, ExpertLayout::kMasked);
  ranks.shape = {8, 2, 4, 4, DType::kBF16};
  ranks.round_tokens = 4;
  ranks.configure(Epoch{1});
  std::thread aborter([&] { ranks.transports[0]->abort(Epoch{2}); });
  std::mt19937 random(1);
  const RankStep step = testing::random_step(random, ranks.shape, 2, [](std::mt19937&) {
    return std::vector<int32_t>{1, 2};
  });
  Microbatch microbatch = ranks.microbatch(0, 0);
  microbatch.start(step, 0);
  microbatch.experts();
  microbatch.finish();
  aborter.join();
  EXPECT_FALSE(ranks.transports[0]->status().ok());
}

// Whatever a stranger sends to a listener, the group forms.
TEST_P(Forming, StrangersAreIgnored) {
  Ranks ranks = two(GetParam());
  const auto address = ListenAddress::parse(ranks.topology.peers[0].address);
  ASSERT_TRUE(address);
  std::vector<Fd> strangers;
  for (int i = 0; i < 20; ++i) {
    const bool is_unix = !address->unix_name.empty();
    Fd fd(::socket(is_unix ? AF_UNIX : AF_INET, is_unix ? SOCK_SEQPACKET : SOCK_STREAM, 0));
    const UnixAddress unix_address(address->unix_name);
    const auto tcp_address = TcpAddress::make(is_unix ? "127.0.0.1" : address->tcp_host, address->tcp_port);
    ASSERT_EQ(::connect(fd.get(), is_unix ? unix_address.get() : tcp_address->get(),
                        is_unix ? unix_address.size() : tcp_address->size()),
              0);
    Hello hello;  // right in all but the key
    hello.rank = 1;
    hello.epoch = 1;
    if (i % 3 == 0) hello.magic = 7;
    const size_t n = i % 2 == 0 ? sizeof(hello) : 11;
    ASSERT_EQ(::send(fd.get(), &hello, n, 0), static_cast<ssize_t>(n));
    strangers.push_back(std::move(fd));
  }
  ranks.configure(Epoch{1});
}

TEST(Transport, ShmRefusesAnotherHost) {
  Ranks ranks = two("shm");
  ranks.topology.peers[1].host_id = "elsewhere";
  const Status status = ranks.configure_rank(0, Epoch{1});
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message, HasSubstr("EP rank 1 is on another host"));
}

TEST(Transport, AnUnknownInterfaceIsAnsweredWithThoseThatExist) {
  TransportOptions options;
  options.kind = "tcp";
  options.interface = "nope0";
  const auto transport = make_transport(options);
  ASSERT_TRUE(transport.ok());
  const auto peer = (*transport)->listen();
  ASSERT_FALSE(peer.ok());
  EXPECT_THAT(peer.error().message, HasSubstr("GLOO_SOCKET_IFNAME nope0"));
  EXPECT_THAT(peer.error().message, HasSubstr("lo"));
}

TEST(Transport, AnUnknownKindIsRefused) {
  const auto transport = make_transport({.kind = "infiniband"});
  ASSERT_FALSE(transport.ok());
  EXPECT_THAT(transport.error().message,
              HasSubstr("expert transport infiniband: there are loopback, shm, tcp and auto"));
}

}  // namespace
}  // namespace manta::ep
