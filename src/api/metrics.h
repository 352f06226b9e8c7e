// Prometheus metrics under vLLM's names where the meaning is the same (docs/api.md), and ours under manta_.
// Every event loop counts into its own shard without locks; a scrape reads all shards and adds them up, engine by
// engine.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/client.h"

namespace manta::api {

// One writer, any reader.
class Counter {
 public:
  void add(uint64_t n) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Buckets are upper bounds, ascending, of static storage.
class Histogram {
 public:
  static constexpr size_t kMaxBuckets = 24;

  explicit Histogram(std::span<const double> bounds) : bounds_(bounds) {}
  void observe(double value);
  std::span<const double> bounds() const { return bounds_; }
  uint64_t count(size_t bucket) const { return counts_[bucket].value(); }  // bounds().size(): above the last
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::span<const double> bounds_;
  std::array<Counter, kMaxBuckets + 1> counts_;
  std::atomic<double> sum_{0};
};

enum class Ending : uint8_t { kStop, kLength, kAbort, kError };
inline constexpr size_t kNumEndings = 4;
enum class Rejection : uint8_t { kQueueFull, kDraining };
inline constexpr size_t kNumRejections = 2;

// What one event loop has seen of the requests of one engine.
struct EngineCounters {
  EngineCounters();

  Counter prompt_tokens, generation_tokens, prompt_tokens_cached;
  std::array<Counter, kNumEndings> request_success;
  std::array<Counter, engine::kNumResubmitReasons> resubmitted;  // taken from this engine by another
  Histogram request_prompt_tokens, request_generation_tokens, request_max_num_generation_tokens, request_params_n,
      request_params_max_tokens;
  Histogram time_to_first_token, inter_token_latency, time_per_output_token, e2e_request_latency;
  Histogram queue_time, prefill_time, decode_time, inference_time;
};

struct MetricsShard {
  explicit MetricsShard(int num_ranks) : by_rank_(static_cast<size_t>(num_ranks)) {}

  // Made at the first use; the loop's own thread. A rank beyond the deployment counts with the last one.
  EngineCounters& of(int rank);
  // Any thread; null: nothing was counted.
  const EngineCounters* find(size_t rank) const { return by_rank_[rank].load(std::memory_order_acquire); }

  std::array<Counter, kNumRejections> admission_rejections;
  // http_requests_total by status class and method would need labels per path; by status they stay bounded.
  std::array<Counter, 6> http_requests;  // [status / 100]

 private:
  std::vector<std::atomic<EngineCounters*>> by_rank_;
  std::vector<std::unique_ptr<EngineCounters>> owned_;
};

class Metrics {
 public:
  // num_ranks: engines of the deployment.
  Metrics(std::string model_name, int num_ranks) : model_name_(std::move(model_name)), num_ranks_(num_ranks) {}

  MetricsShard& add_shard();  // before the loops start; lives as long as this

  struct Snapshot {
    std::vector<engine::EngineView> engines;
    std::optional<engine::Welcome> model;
    int64_t num_admitted = 0;
    bool routing_simulated = false;
    std::string kv_connector;  // of the deployment; empty: none
  };
  // Requests that were taken from an engine, for one reason; any thread.
  uint64_t resubmitted(int rank, engine::ResubmitReason reason) const;
  // Text exposition format 0.0.4.
  std::string expose(const Snapshot& snapshot) const;

 private:
  std::string model_name_;
  int num_ranks_;
  std::vector<std::unique_ptr<MetricsShard>> shards_;
};

}  // namespace manta::api
