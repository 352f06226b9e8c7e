#include <fmt/format.h>

#include <functional>

#include "api/metrics_page.h"

namespace manta::api {
namespace {

constexpr const char* kEndingNames[kNumEndings] = {"stop", "length", "abort", "error"};
constexpr const char* kRejectionNames[kNumRejections] = {"max_num_queued_reqs", "draining"};

using Shards = std::vector<std::unique_ptr<MetricsShard>>;

// Families with one sample, or one histogram, per engine: the sums over the event loops.
class Families {
 public:
  Families(Page& page, const Shards& shards, const std::vector<int>& ranks)
      : page_(page), shards_(shards), ranks_(ranks) {}

  void counter(std::string_view name, std::string_view help, Counter EngineCounters::*which) {
    page_.text.family(name, "counter", help);
    for (const int rank : ranks_) {
      page_.text.sample(page_.of_engine(rank),
                        total(rank, [which](const EngineCounters& c) -> const Counter& { return c.*which; }));
    }
  }
  template <size_t N>
  void counters(std::string_view name, std::string_view help, std::array<Counter, N> EngineCounters::*which,
                std::string_view label, const std::function<std::string(size_t)>& value) {
    page_.text.family(name, "counter", help);
    for (const int rank : ranks_) {
      for (size_t i = 0; i < N; ++i) {
        Labels labels = page_.of_engine(rank);
        labels.emplace_back(label, value(i));
        page_.text.sample(labels,
                          total(rank, [which, i](const EngineCounters& c) -> const Counter& { return (c.*which)[i]; }));
      }
    }
  }
  void histogram(std::string_view name, std::string_view help, Histogram EngineCounters::*which) {
    page_.text.family(name, "histogram", help);
    for (const int rank : ranks_) {
      std::span<const double> bounds;
      std::vector<uint64_t> counts;
      double sum = 0;
      for (const auto& shard : shards_) {
        const EngineCounters* counted = shard->find(static_cast<size_t>(rank));
        if (!counted) continue;
        const Histogram& histogram = counted->*which;
        bounds = histogram.bounds();
        counts.resize(bounds.size() + 1);
        for (size_t i = 0; i < counts.size(); ++i) counts[i] += histogram.count(i);
        sum += histogram.sum();
      }
      if (!counts.empty()) page_.text.histogram(page_.of_engine(rank), bounds, counts, sum);
    }
  }

 private:
  uint64_t total(int rank, const std::function<const Counter&(const EngineCounters&)>& which) const {
    uint64_t sum = 0;
    for (const auto& shard : shards_) {
      if (const EngineCounters* counted = shard->find(static_cast<size_t>(rank))) sum += which(*counted).value();
    }
    return sum;
  }

  Page& page_;
  const Shards& shards_;
  const std::vector<int>& ranks_;
};

void write_counters(Families& families) {
  using C = EngineCounters;
  families.counter("vllm:prompt_tokens_total", "Number of prefill tokens processed.", &C::prompt_tokens);
  families.counter("vllm:generation_tokens_total", "Number of generation tokens processed.", &C::generation_tokens);
  families.counter("vllm:prompt_tokens_cached_total", "Number of prompt tokens that were not computed.",
                   &C::prompt_tokens_cached);
  families.counters("vllm:request_success_total", "Count of finished requests by reason.", &C::request_success,
                    "finished_reason", [](size_t i) { return kEndingNames[i]; });
  families.counters("manta_requests_resubmitted_total", "Requests that another engine took over from this one.",
                    &C::resubmitted, "reason",
                    [](size_t i) { return to_string(static_cast<engine::ResubmitReason>(i)); });
}

void write_histograms(Families& families) {
  using C = EngineCounters;
  families.histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", &C::request_prompt_tokens);
  families.histogram("vllm:request_generation_tokens", "Number of generation tokens processed.",
                     &C::request_generation_tokens);
  families.histogram("vllm:request_max_num_generation_tokens", "Maximum number of requested generation tokens.",
                     &C::request_max_num_generation_tokens);
  families.histogram("vllm:request_params_n", "The n request parameter.", &C::request_params_n);
  families.histogram("vllm:request_params_max_tokens", "The max_tokens request parameter.",
                     &C::request_params_max_tokens);
  families.histogram("vllm:time_to_first_token_seconds", "Time to first token in seconds.", &C::time_to_first_token);
  families.histogram("vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", &C::inter_token_latency);
  families.histogram("vllm:request_time_per_output_token_seconds", "Time per output token of a request in seconds.",
                     &C::time_per_output_token);
  families.histogram("vllm:e2e_request_latency_seconds", "End to end request latency in seconds.",
                     &C::e2e_request_latency);
  families.histogram("vllm:request_queue_time_seconds", "Time in the engine before the first step, in seconds.",
                     &C::queue_time);
  families.histogram("vllm:request_prefill_time_seconds", "Time from the first step to the first token, in seconds.",
                     &C::prefill_time);
  families.histogram("vllm:request_decode_time_seconds", "Time from the first to the last token, in seconds.",
                     &C::decode_time);
  families.histogram("vllm:request_inference_time_seconds", "Time from the first step to the last token, in seconds.",
                     &C::inference_time);
}

uint64_t sum_over(const Shards& shards, const std::function<uint64_t(const MetricsShard&)>& value) {
  uint64_t sum = 0;
  for (const auto& shard : shards) sum += value(*shard);
  return sum;
}

}  // namespace

void write_requests(Page& page, const Shards& shards, const std::vector<int>& ranks) {
  Families families(page, shards, ranks);
  write_counters(families);
  page.text.family("vllm:admission_rejections_total", "counter", "Requests answered 503 at admission, by reason.");
  for (size_t i = 0; i < kNumRejections; ++i) {
    page.text.sample(page.with("reason", kRejectionNames[i]),
                     sum_over(shards, [i](const MetricsShard& s) { return s.admission_rejections[i].value(); }));
  }
  page.text.family("http_requests_total", "counter", "Responses by class of status.");
  for (size_t i = 1; i < 6; ++i) {
    page.text.sample({{"status", fmt::format("{}xx", i)}},
                     sum_over(shards, [i](const MetricsShard& s) { return s.http_requests[i].value(); }));
  }
  write_histograms(families);
}

}  // namespace manta::api
