// The ranks of an expert-parallel group inside one process, for tests: an executor with its share of the experts and a
// scheduler each, all stepped together by the test's thread, over shared memory as between processes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "serving.h"

namespace manta::exec {

class GroupServing {
 public:
  // Every rank like `options`, but for its place in the group.
  GroupServing(const LocalExecutorOptions& options, int num_ranks, bool prefix_caching, int plans_in_flight)
      : plans_in_flight_(plans_in_flight) {
    for (int rank = 0; rank < num_ranks; ++rank) {
      LocalExecutorOptions o = options;
      o.ep_rank = rank;
      o.ep_size = num_ranks;
      if (num_ranks > 1 && o.transport.kind == "loopback") o.transport.kind = "shm";
      auto made = make_local_executor(o);
      EXPECT_TRUE(made.ok()) << made.error().message;
      if (!made.ok()) return;
      ranks_.push_back(std::make_unique<Serving>(std::move(made).value(), prefix_caching, plans_in_flight));
    }
    form(1);
  }

  // Collective, so on a thread for each rank.
  void form(uint64_t epoch) {
    ep::EpTopology topology;
    topology.epoch = Epoch{epoch};
    topology.size = size();
    for (auto& rank : ranks_) {
      if (const auto& peer = rank->executor().info().ep_peer) topology.peers.push_back(*peer);
    }
    if (topology.peers.empty()) return;  // alone
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size(); ++rank) {
      threads.emplace_back([this, topology, rank]() mutable {
        topology.rank = rank;
        const Status formed = ranks_[rank]->executor().form_group(topology);
        EXPECT_TRUE(formed.ok()) << formed.error().message;
      });
    }
    for (auto& thread : threads) thread.join();
  }

  // Request i goes to rank i mod size. By index of the request.
  std::vector<Generated> run(const std::vector<sched::Request>& requests) {
    std::vector<Generated> out(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      sched::Request request = requests[i];
      request.id = {1, i};
      const Status added = scheduler(static_cast<int>(i) % size()).add(std::move(request));
      EXPECT_TRUE(added.ok()) << added.error().message;
    }
    int in_flight = 0;
    while (!::testing::Test::HasFatalFailure()) {
      const bool planned = in_flight < plans_in_flight_ && submit_step();
      in_flight += planned;
      if (in_flight == 0) break;
      if (planned && in_flight < plans_in_flight_) continue;
      for (int rank = 0; rank < size(); ++rank) collect(rank, out);
      if (::testing::Test::HasFailure()) return out;
      --in_flight;
    }
    return out;
  }

  int size() const { return static_cast<int>(ranks_.size()); }
  sched::Scheduler& scheduler(int rank) { return ranks_[rank]->scheduler(); }
  const ep::Traffic& traffic() const { return traffic_; }
  int num_dummy_steps() const { return num_dummy_steps_; }
  int num_split_steps() const { return num_split_steps_; }

  int num_microbatches = 1;

 private:
  struct Submitted {
    Ticket ticket;
    bool dummy;
  };

  // One step of the whole group; false: nobody has work.
  bool submit_step() {
    std::vector<std::optional<sched::StepPlan>> plans;
    for (auto& rank : ranks_) plans.push_back(rank->scheduler().plan({}));
    if (std::ranges::none_of(plans, [](const auto& plan) { return plan.has_value(); })) return false;
    num_split_steps_ += num_microbatches > 1;
    for (int rank = 0; rank < size(); ++rank) {
      const bool dummy = !plans[rank].has_value();
      sched::StepPlan plan = dummy ? sched::StepPlan{} : std::move(*plans[rank]);
      plan.dp.dummy = dummy;
      plan.dp.num_microbatches = num_microbatches;
      num_dummy_steps_ += dummy;
      const auto ticket = ranks_[rank]->executor().submit(std::move(plan));
      EXPECT_TRUE(ticket.ok()) << ticket.error().message;
      if (ticket.ok()) submitted_[rank].push_back({*ticket, dummy});
    }
    return true;
  }

  void collect(int rank, std::vector<Generated>& out) {
    ASSERT_FALSE(submitted_[rank].empty());
    const Submitted step = submitted_[rank].front();
    submitted_[rank].pop_front();
    auto result = ranks_[rank]->executor().collect(step.ticket, Deadline::max());
    ASSERT_TRUE(result.ok()) << result.error().message;
    traffic_.rows += result->traffic.rows;
    traffic_.bytes += result->traffic.bytes;
    if (step.dummy) return;
    auto events = scheduler(rank).collect(result->id, std::move(result->slots));
    ASSERT_TRUE(events.ok()) << events.error().message;
    for (auto& event : *events) Serving::record(event, out[event.id.serial]);
  }

  int plans_in_flight_;
  std::vector<std::unique_ptr<Serving>> ranks_;
  std::map<int, std::deque<Submitted>> submitted_;
  ep::Traffic traffic_;
  int num_dummy_steps_ = 0;
  int num_split_steps_ = 0;
};

}  // namespace manta::exec
