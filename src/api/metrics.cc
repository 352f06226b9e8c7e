#include "api/metrics.h"

#include <algorithm>
#include <set>

#include "api/metrics_page.h"

namespace manta::api {
namespace {

// vLLM's buckets.
constexpr double kFirstTokenBounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                        1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kInterTokenBounds[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                        .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
constexpr double kRequestBounds[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                     30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kTokenBounds[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                   1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
constexpr double kNBounds[] = {1, 2, 5, 10, 20};

}  // namespace

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].add(1);
  sum_.store(sum_.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
}

EngineCounters::EngineCounters()
    : request_prompt_tokens(kTokenBounds),
      request_generation_tokens(kTokenBounds),
      request_max_num_generation_tokens(kTokenBounds),
      request_params_n(kNBounds),
      request_params_max_tokens(kTokenBounds),
      time_to_first_token(kFirstTokenBounds),
      inter_token_latency(kInterTokenBounds),
      time_per_output_token(kInterTokenBounds),
      e2e_request_latency(kRequestBounds),
      queue_time(kRequestBounds),
      prefill_time(kRequestBounds),
      decode_time(kRequestBounds),
      inference_time(kRequestBounds) {}

EngineCounters& MetricsShard::of(int rank) {
  const size_t i = std::min(static_cast<size_t>(std::max(rank, 0)), by_rank_.size() - 1);
  if (EngineCounters* counted = by_rank_[i].load(std::memory_order_relaxed)) return *counted;
  EngineCounters& counted = *owned_.emplace_back(std::make_unique<EngineCounters>());
  by_rank_[i].store(&counted, std::memory_order_release);
  return counted;
}

MetricsShard& Metrics::add_shard() {
  return *shards_.emplace_back(std::make_unique<MetricsShard>(num_ranks_));
}

uint64_t Metrics::resubmitted(int rank, engine::ResubmitReason reason) const {
  uint64_t sum = 0;
  for (const auto& shard : shards_) {
    const EngineCounters* counted = rank < num_ranks_ ? shard->find(static_cast<size_t>(rank)) : nullptr;
    if (counted) sum += counted->resubmitted[static_cast<size_t>(reason)].value();
  }
  return sum;
}

std::string Metrics::expose(const Snapshot& snapshot) const {
  std::set<int> ranks;
  for (const auto& engine : snapshot.engines) {
    if (engine.rank < num_ranks_) ranks.insert(engine.rank);
  }
  for (int rank = 0; rank < num_ranks_; ++rank) {
    const auto counted = [rank](const auto& shard) { return shard->find(static_cast<size_t>(rank)) != nullptr; };
    if (std::any_of(shards_.begin(), shards_.end(), counted)) ranks.insert(rank);
  }
  std::string out;
  Page page{MetricsText(out), {{"model_name", model_name_}}};
  write_requests(page, shards_, {ranks.begin(), ranks.end()});
  write_engines(page, snapshot);
  write_process(page, snapshot.num_admitted);
  return out;
}

}  // namespace manta::api
