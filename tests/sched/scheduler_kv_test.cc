// Requests whose rows come from a peer, and blocks that a peer reads after their request has ended.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "simulation.h"

namespace manta::sched {
namespace {

using ::testing::HasSubstr;

// Says what the test wants it to say, and checks the order of the calls.
class ScriptedConnector : public kv::KvConnectorScheduler {
 public:
  void on_added(RequestId id, const std::string& params) override { known[id] = params; }
  Result<std::optional<kv::ExternalMatch>> match(RequestId id, std::span<const TokenId> tokens, int num_local_tokens,
                                                 const std::string& params) override {
    ++num_asked;
    EXPECT_EQ(known.at(id), params);
    if (params == "refuse") return error(ErrorCode::kInvalidArgument, "remote_engine_id is missing");
    if (undecided > 0) {
      --undecided;
      return std::optional<kv::ExternalMatch>{};
    }
    if (params != "remote") return std::optional(kv::ExternalMatch{});
    return std::optional(kv::ExternalMatch{static_cast<int>(tokens.size()) - num_local_tokens, asynchronous});
  }
  void on_allocated(RequestId id, std::span<const BlockId> blocks, int num_external_tokens) override {
    actions.loads.push_back({id, 1, {blocks.begin(), blocks.end()}, num_external_tokens, 0, ""});
  }
  void on_computed(RequestId id, std::span<const BlockId>, int num_computed_tokens) override {
    EXPECT_GT(num_computed_tokens, computed[id.serial]);
    computed[id.serial] = num_computed_tokens;
  }
  kv::KvActions build_actions() override { return std::exchange(actions, {}); }
  void on_progress(const kv::KvProgress&) override { ++num_progress; }
  kv::HandOff on_finished(RequestId id, std::span<const BlockId> blocks, int num_tokens) override {
    EXPECT_EQ(known.erase(id), 1u);
    finished_rows[id.serial] = num_tokens;
    if (hold) actions.saves.push_back({id, 1, {blocks.begin(), blocks.end()}, num_tokens, 0, ""});
    return {hold, hold ? "{\"remote\":1}" : ""};
  }
  void on_aborted(RequestId id) override {
    EXPECT_EQ(known.erase(id), 1u);
    actions.cancels.push_back(id);
  }

  bool asynchronous = true;
  bool hold = false;
  int undecided = 0;
  int num_asked = 0, num_progress = 0;
  kv::KvActions actions;
  std::map<RequestId, std::string> known;
  std::map<uint64_t, int> computed, finished_rows;
};

SchedulerOptions small() {
  SchedulerOptions options;
  options.num_blocks = 16;
  options.block_size = 4;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 16;
  options.max_model_len = 48;
  return options;
}

Request remote(uint64_t serial, int num_tokens, int max_tokens, const char* params = "remote") {
  Request request = make_request(serial, counting_prompt(num_tokens, static_cast<int>(serial)), max_tokens);
  request.kv_transfer_params = params;
  return request;
}

Outcome without_connector(const Request& request) {
  Simulation sim(small());
  EXPECT_TRUE(sim.scheduler->add(request).ok());
  sim.run();
  return sim.outcomes[request.id.serial];
}

TEST(SchedulerKv, ARemotePrefillRecomputesItsLastTokenOnly) {
  for (int depth : {1, 2}) {
    for (bool asynchronous : {true, false}) {
      ScriptedConnector connector;
      connector.asynchronous = asynchronous;
      Simulation sim(small(), depth, &connector);
      std::vector<int> prefilled;
      sim.on_plan = [&](const StepPlan& plan) {
        for (const auto& prefill : plan.prefills) prefilled.push_back(prefill.num_scheduled_tokens);
      };
      const Request request = remote(1, 12, 6);
      ASSERT_TRUE(sim.scheduler->add(request).ok());
      sim.run();
      EXPECT_EQ(prefilled, (std::vector<int>{1}));
      EXPECT_TRUE(sim.outcomes[1] == without_connector(request));
      EXPECT_EQ(sim.outcomes[1].num_cached_tokens, 11);
      EXPECT_EQ(connector.finished_rows[1], 12 + 6 - 1);
      EXPECT_TRUE(connector.known.empty());
      EXPECT_EQ(sim.scheduler->blocks().num_available(), 16);
    }
  }
}

TEST(SchedulerKv, WhileItLoadsOthersRunAndItHoldsNoSlot) {
  ScriptedConnector connector;
  SchedulerOptions options = small();
  options.max_num_seqs = 1;
  Simulation sim(options, 1, &connector);
  ASSERT_TRUE(sim.scheduler->add(remote(1, 12, 3)).ok());
  ASSERT_TRUE(sim.scheduler->add(remote(2, 5, 3, "")).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->kv.loads.size(), 1u);
  ASSERT_EQ(plan->admitted.size(), 1u);
  EXPECT_EQ(plan->admitted[0].id.serial, 2u);
  EXPECT_EQ(sim.scheduler->stats().num_loading, 1);
  EXPECT_EQ(sim.scheduler->stats().num_waiting, 1);
  EXPECT_TRUE(sim.scheduler->awaits_peers());
  EXPECT_EQ(sim.scheduler->blocks().counts().used, 3 + 2);
}

TEST(SchedulerKv, WithNothingElseToDoTransfersAreAskedFor) {
  ScriptedConnector connector;
  Simulation sim(small(), 1, &connector);
  ASSERT_TRUE(sim.scheduler->add(remote(1, 12, 3)).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  EXPECT_TRUE(plan->prefills.empty());
  ASSERT_TRUE(sim.scheduler->collect(plan->id, {}).ok());  // not received yet
  EXPECT_FALSE(sim.scheduler->plan({}));
  EXPECT_TRUE(sim.scheduler->awaits_peers());
  const StepPlan poll = sim.scheduler->plan_transfers({});
  EXPECT_TRUE(poll.empty());
  kv::KvProgress progress;
  progress.received = {{1, 1}};
  ASSERT_TRUE(sim.scheduler->collect(poll.id, {}, progress).ok());
  EXPECT_FALSE(sim.scheduler->awaits_peers());
  ASSERT_TRUE(sim.scheduler->plan({}));
  EXPECT_EQ(connector.num_asked, 1);
}

TEST(SchedulerKv, UndecidedRequestsAreAskedAgainAndKeepNobodyWaiting) {
  ScriptedConnector connector;
  connector.undecided = 3;
  Simulation sim(small(), 1, &connector);
  ASSERT_TRUE(sim.scheduler->add(remote(1, 12, 3)).ok());
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(sim.scheduler->plan({}));
  EXPECT_EQ(sim.scheduler->stats().num_waiting, 1);
  sim.run();
  EXPECT_EQ(sim.outcomes[1].tokens.size(), 3u);
  EXPECT_EQ(connector.num_asked, 4);

  connector.undecided = 1;
  ASSERT_TRUE(sim.scheduler->add(remote(2, 12, 3)).ok());
  EXPECT_FALSE(sim.scheduler->plan({}));
  EXPECT_TRUE(sim.scheduler->abort({1, 2}));
  EXPECT_FALSE(sim.scheduler->has_requests());
}

TEST(SchedulerKv, ARefusalEndsTheRequestWithItsReason) {
  ScriptedConnector connector;
  Simulation sim(small(), 1, &connector);
  ASSERT_TRUE(sim.scheduler->add(remote(1, 12, 3, "refuse")).ok());
  ASSERT_TRUE(sim.scheduler->add(remote(2, 5, 3, "")).ok());
  ASSERT_TRUE(sim.step());
  EXPECT_EQ(sim.outcomes[1].finish, FinishReason::kError);
  EXPECT_THAT(sim.outcomes[1].error.message, HasSubstr("remote_engine_id"));
  sim.run();
  EXPECT_EQ(sim.outcomes[2].tokens.size(), 3u);
  ASSERT_TRUE(sim.scheduler->add(remote(3, 12, 3, "refuse")).ok());
  EXPECT_TRUE(sim.scheduler->plan({}).has_value());  // its cancellation
  const auto events = sim.scheduler->take_events();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].id.serial, 3u);
}

kv::KvProgress failed(uint64_t serial, int num_valid_tokens) {
  kv::KvProgress progress;
  progress.failed.push_back({{1, serial}, num_valid_tokens, "lease expired"});
  return progress;
}

TEST(SchedulerKv, AFailedLoadEndsTheRequestOrIsComputedHere) {
  for (bool recompute : {false, true}) {
    ScriptedConnector connector;
    SchedulerOptions options = small();
    options.recompute_failed_loads = recompute;
    Simulation sim(options, 1, &connector);
    const Request request = remote(1, 12, 5);
    ASSERT_TRUE(sim.scheduler->add(request).ok());
    auto plan = sim.scheduler->plan({});
    ASSERT_TRUE(plan);
    auto events = sim.scheduler->collect(plan->id, {}, failed(1, 0));
    ASSERT_TRUE(events.ok());
    if (recompute) {
      EXPECT_TRUE(events->empty());
      sim.run();
      EXPECT_TRUE(sim.outcomes[1] == without_connector(request));
    } else {
      ASSERT_EQ(events->size(), 1u);
      EXPECT_EQ((*events)[0].finish, FinishReason::kError);
      EXPECT_THAT((*events)[0].error.message, HasSubstr("lease expired"));
    }
    EXPECT_FALSE(sim.scheduler->has_requests());
    EXPECT_EQ(sim.scheduler->blocks().num_available(), 16);
    EXPECT_TRUE(connector.known.empty());
  }
}

TEST(SchedulerKv, FinishedBlocksStayWithThePeerUntilSent) {
  ScriptedConnector connector;
  connector.hold = true;
  Simulation sim(small(), 1, &connector);
  ASSERT_TRUE(sim.scheduler->add(remote(1, 12, 1, "")).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  const SlotId slot = plan->admitted[0].slot;
  auto events = sim.scheduler->collect(plan->id, {{slot, 1, {7}, {}, {}, 0, {}}});
  ASSERT_TRUE(events.ok());
  EXPECT_EQ((*events)[0].kv_transfer_params, "{\"remote\":1}");
  EXPECT_EQ(connector.computed[1], 12);
  EXPECT_EQ(connector.finished_rows[1], 12);
  EXPECT_EQ(sim.scheduler->blocks().counts().held, 3);
  EXPECT_FALSE(sim.scheduler->has_requests());
  EXPECT_TRUE(sim.scheduler->awaits_peers());
  plan = sim.scheduler->plan({});  // carries the offer
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->kv.saves.size(), 1u);
  kv::KvProgress progress;
  progress.sent = {{1, 1}};
  ASSERT_TRUE(sim.scheduler->collect(plan->id, {}, progress).ok());
  EXPECT_EQ(sim.scheduler->blocks().num_available(), 16);
  EXPECT_FALSE(sim.scheduler->awaits_peers());
}

TEST(SchedulerKv, BlocksOfAnAbortedLoadWaitForTheTransfer) {
  ScriptedConnector connector;
  Simulation sim(small(), 1, &connector);
  ASSERT_TRUE(sim.scheduler->add(remote(1, 12, 3)).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  EXPECT_TRUE(sim.scheduler->abort({1, 1}));
  EXPECT_EQ(sim.scheduler->blocks().counts().held, 3);
  ASSERT_TRUE(sim.scheduler->collect(plan->id, {}).ok());
  plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->kv.cancels.size(), 1u);
  ASSERT_TRUE(sim.scheduler->collect(plan->id, {}, failed(1, 0)).ok());
  EXPECT_EQ(sim.scheduler->blocks().num_available(), 16);
}

// A loaded request holds blocks while it waits for a slot, and a big one in front of it waits for blocks: neither may
// keep the other from going on.
TEST(SchedulerKv, LoadedAndWaitingRequestsDoNotBlockEachOther) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    ScriptedConnector connector;
    connector.hold = seed % 2;
    SchedulerOptions options = small();
    options.num_blocks = 12;
    options.max_num_seqs = 1 + static_cast<int>(rng() % 3);
    Simulation sim(options, 1 + static_cast<int>(rng() % 2), &connector);
    std::vector<Request> requests;
    for (uint64_t i = 1; i <= 12; ++i) {
      requests.push_back(
          remote(i, 1 + static_cast<int>(rng() % 40), 1 + static_cast<int>(rng() % 7), rng() % 2 ? "remote" : ""));
      ASSERT_TRUE(sim.scheduler->add(requests.back()).ok());
      if (rng() % 2) sim.step();
    }
    sim.run();
    EXPECT_FALSE(sim.scheduler->has_requests());
    EXPECT_EQ(sim.scheduler->blocks().num_available(), 12);
    for (const Request& request : requests) {
      EXPECT_TRUE(sim.outcomes[request.id.serial] == without_connector(request)) << request.id.serial;
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace manta::sched
