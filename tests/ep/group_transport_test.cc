// combine(dispatch(x)) over processes' transports: bit for bit what one rank with all experts makes of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ep/host.h"
#include "rank_group.h"

namespace manta::ep {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

struct Case {
  const char* kind;
  ExpertLayout layout;
  DType wire;
  int ranks;
};

std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return std::string(c.kind) + (c.layout == ExpertLayout::kContiguous ? "Contiguous" : "Masked") +
         (c.wire == DType::kF32 ? "F32" : "BF16") + "x" + std::to_string(c.ranks);
}

std::vector<int> hosts_for(const Case& c) {
  std::vector<int> hosts(c.ranks, 0);
  if (std::string(c.kind) == "auto") {  // two hosts, not in order
    for (int r = 0; r < c.ranks; ++r) hosts[r] = r % 2;
  }
  return hosts;
}

class Transport : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int kLocal = 3, kTopK = 3, kHidden = 20, kMaxTokens = 23;

  TransportOptions options() const {
    TransportOptions o;
    o.kind = GetParam().kind;
    o.layout = GetParam().layout;
    o.connect_deadline = o.wait_deadline = 30s;
    return o;
  }
  MoeShape shape() const { return {kHidden, kTopK, kLocal * GetParam().ranks, kLocal, GetParam().wire}; }

  // Steps of several layers, a random number of tokens each; all ranks' results against the truth.
  void run_layers(RankGroup& group, int layers, unsigned seed, const std::function<void(Tokens&)>& bend = {}) {
    group.on_all([&](int rank) {
      std::mt19937 random(seed * 1000 + rank);
      for (int layer = 0; layer < layers; ++layer) {
        const int count = random() % 4 == 0 ? 0 : static_cast<int>(random() % (kMaxTokens + 1));
        Tokens tokens = random_tokens(random, count, shape());
        if (bend) bend(tokens);
        const auto got = dispatch_and_combine(group[rank], tokens, layer, rank, kLocal, layer % 2);
        EXPECT_EQ(got, by_loopback(tokens, shape(), GetParam().layout)) << "rank " << rank << ", layer " << layer;
      }
      EXPECT_TRUE(group[rank].status().ok()) << group[rank].status().error().message;
    });
  }
};

TEST_P(Transport, RandomRoutingEqualsOneRank) {
  RankGroup group(options(), hosts_for(GetParam()));
  group.configure(1, shape(), kMaxTokens, 2);
  run_layers(group, 12, 1);
}

TEST_P(Transport, OneExpertTakesAll) {
  RankGroup group(options(), hosts_for(GetParam()));
  group.configure(1, shape(), kMaxTokens, 2);
  run_layers(group, 4, 2, [](Tokens& t) {
    for (size_t i = 0; i < t.ids.size(); ++i) t.ids[i] = i % t.top_k == 0 ? 1 : -1;
  });
}

TEST_P(Transport, OnlyTheLastRankHasTokens) {
  RankGroup group(options(), hosts_for(GetParam()));
  group.configure(1, shape(), kMaxTokens, 2);
  group.on_all([&](int rank) {
    std::mt19937 random(3);
    Tokens tokens = random_tokens(random, rank == group.size() - 1 ? kMaxTokens : 0, shape());
    const auto got = dispatch_and_combine(group[rank], tokens, 0, rank, kLocal);
    EXPECT_EQ(got, by_loopback(tokens, shape(), GetParam().layout));
  });
}

// A rank with more tokens than fit one round says so, and all ranks learn it.
TEST_P(Transport, AllRanksLearnThatAnotherRoundFollows) {
  RankGroup group(options(), hosts_for(GetParam()));
  group.configure(1, shape(), kMaxTokens, 2);
  group.on_all([&](int rank) {
    Lane lane;
    ExpertBatch batch;
    for (const bool more : {true, false}) {
      std::mt19937 random(rank);
      Tokens tokens = random_tokens(random, 3, shape());
      Routed routed = tokens.routed(0);
      routed.more = more && rank == 0;
      std::vector<float> out(3 * kHidden);
      DispatchHandle& handle = group[rank].handle(0);
      group[rank].dispatch_start(lane, handle, routed);
      group[rank].dispatch_finish(lane, handle, batch);
      EXPECT_EQ(batch.more, more);
      group[rank].combine_start(lane, handle, batch);
      group[rank].combine_finish(lane, handle, make_tensor(out.data(), DType::kF32, {3, kHidden}));
    }
  });
}

TEST_P(Transport, ANewEpochFormsTheGroupAgain) {
  RankGroup group(options(), hosts_for(GetParam()));
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    group.configure(epoch, shape(), kMaxTokens, 2);
    run_layers(group, 3, static_cast<unsigned>(epoch));
    for (int r = 0; r < group.size(); ++r) group[r].abort(Epoch{epoch + 1});
  }
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const char* kind : {"shm", "tcp", "auto"}) {
    for (const ExpertLayout layout : {ExpertLayout::kContiguous, ExpertLayout::kMasked}) {
      for (const int ranks : {1, 2, 4, 16}) {
        for (const DType wire : {DType::kF32, DType::kBF16}) out.push_back({kind, layout, wire, ranks});
      }
    }
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Groups, Transport, ::testing::ValuesIn(cases()), name_of);

// ---- faults ------------------------------------------------------------------------------------------------------

class TransportFaults : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr MoeShape kShape{8, 2, 8, 4, DType::kF32};

  TransportOptions options() const {
    TransportOptions o;
    o.kind = GetParam();
    o.connect_deadline = o.wait_deadline = 30s;
    return o;
  }
};

TEST_P(TransportFaults, AbortEndsTheWaitForARankThatDoesNotCome) {
  RankGroup group(options(), {0, 0});
  group.configure(1, kShape, 4, 1);
  std::mt19937 random(1);
  Tokens tokens = random_tokens(random, 4, kShape);
  std::thread other([&] { group[0].abort(Epoch{2}); });
  dispatch_and_combine(group[0], tokens, 5, 0, 4);  // rank 1 never dispatches
  other.join();
  const Status status = group[0].status();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kAborted);

  group[1].abort(Epoch{2});
  group.configure(2, kShape, 4, 1);  // both can go on
  group.on_all([&](int rank) {
    std::mt19937 again(rank);
    Tokens more = random_tokens(again, 4, kShape);
    EXPECT_EQ(dispatch_and_combine(group[rank], more, 0, rank, 4),
              by_loopback(more, kShape, ExpertLayout::kContiguous));
  });
}

TEST_P(TransportFaults, AbortEndsAMeetingThatNobodyElseComesTo) {
  RankGroup group(options(), {0, 0});
  std::thread other([&] { group[0].abort(Epoch{8}); });
  const Status status = group[0].configure(group.topology(0, 7), kShape, 4, 1);
  other.join();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kAborted);
}

TEST_P(TransportFaults, ALateRankIsNamed) {
  TransportOptions impatient = options();
  impatient.connect_deadline = 50ms;
  RankGroup group(impatient, {0, 0, 0, 0});
  const MoeShape shape{8, 2, 16, 4, DType::kF32};
  const Status status = group[1].configure(group.topology(1, 1), shape, 4, 1);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message, HasSubstr("rank 0, 2, 3 did not come to epoch 1"));
}

TEST_P(TransportFaults, ARankOfAnOlderEpochIsToldTheCurrentOne) {
  RankGroup group(options(), {0, 0});
  std::thread ahead([&] {
    const Status met = group[1].configure(group.topology(1, 9), kShape, 4, 1);
    EXPECT_TRUE(met.ok()) << met.error().message;
  });
  const Status stale = group[0].configure(group.topology(0, 8), kShape, 4, 1);
  ASSERT_FALSE(stale.ok());
  EXPECT_EQ(stale.error().code, ErrorCode::kAborted);
  EXPECT_THAT(stale.error().message, HasSubstr("rank 1 is at epoch 9, this rank at 8"));
  const Status met = group[0].configure(group.topology(0, 9), kShape, 4, 1);
  EXPECT_TRUE(met.ok()) << met.error().message;
  ahead.join();
}

TEST_P(TransportFaults, ImpossibleRoutingIsAFaultNotACrash) {
  RankGroup group(options(), {0});
  const MoeShape alone{8, 2, 4, 4, DType::kF32};
  group.configure(1, alone, 4, 1);
  std::mt19937 random(1);
  Tokens tokens = random_tokens(random, 4, alone);
  tokens.ids[3] = 99;
  dispatch_and_combine(group[0], tokens, 6, 0, 4);
  ASSERT_FALSE(group[0].status().ok());
  EXPECT_THAT(group[0].status().error().message, HasSubstr("rank 0, MoE layer 6, dispatch: expert 99 of 4"));
}

INSTANTIATE_TEST_SUITE_P(Kinds, TransportFaults, ::testing::Values("shm", "tcp"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TransportOptions, UnknownKindsAndInterfacesAreNamed) {
  TransportOptions o;
  o.kind = "pigeon";
  EXPECT_THAT(make_transport(o).error().message, HasSubstr("expert transport pigeon: there are loopback, shm, tcp"));
  o.kind = "tcp";
  o.interface = "nosuch0";
  EXPECT_THAT(make_transport(o).error().message, HasSubstr("GLOO_SOCKET_IFNAME nosuch0: no such network interface"));
  EXPECT_THAT(make_transport(o).error().message, HasSubstr("lo (127.0.0.1)"));
  EXPECT_EQ(*interface_address("nosuch0,lo"), "127.0.0.1");
}

TEST(TransportOptions, SharedMemoryDoesNotReachAnotherHost) {
  TransportOptions o;
  o.kind = "shm";
  RankGroup group(o, {0, 1});
  const Status status = group[0].configure(group.topology(0, 1), {8, 2, 8, 4, DType::kF32}, 4, 1);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message, HasSubstr("rank 1 is on another host"));
}

TEST(Traffic, CountsWhatCrossesRanks) {
  TransportOptions o;
  o.kind = "shm";
  RankGroup group(o, {0, 0});
  const MoeShape shape{8, 2, 8, 4, DType::kF32};
  group.configure(1, shape, 4, 1);
  group.on_all([&](int rank) {
    Tokens t{1, 2, 8, DType::kF32, std::vector<std::byte>(32), {0, 5}, {1, 1}};  // one expert of each rank
    dispatch_and_combine(group[rank], t, 0, rank, 4);
    EXPECT_EQ(group[rank].traffic().rows, 1u);
    EXPECT_EQ(group[rank].traffic().bytes, 32u);
  });
}

TEST(DelayTransport, GivesTheSameRows) {
  TransportOptions o;
  o.kind = "shm";
  o.delay = 200us;
  RankGroup group(o, {0, 0});
  const MoeShape shape{8, 2, 8, 4, DType::kBF16};
  group.configure(1, shape, 16, 2);
  group.on_all([&](int rank) {
    std::mt19937 random(rank);
    for (int layer = 0; layer < 4; ++layer) {
      Tokens tokens = random_tokens(random, 9, shape);
      EXPECT_EQ(dispatch_and_combine(group[rank], tokens, layer, rank, 4, layer % 2),
                by_loopback(tokens, shape, ExpertLayout::kContiguous));
    }
  });
}

}  // namespace
}  // namespace manta::ep
