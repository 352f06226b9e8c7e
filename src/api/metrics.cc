#include "api/metrics.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <sstream>

#include "api/metrics_text.h"

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
constexpr const char* kEndingNames[kNumEndings] = {"stop", "length", "abort", "error"};
constexpr const char* kRejectionNames[kNumRejections] = {"max_num_queued_reqs", "draining"};

using Shards = std::vector<std::unique_ptr<MetricsShard>>;

struct Page {
  MetricsText text;
  const Shards& shards;
  Labels model;  // model_name

  uint64_t total(const std::function<const Counter&(const MetricsShard&)>& which) const {
    uint64_t sum = 0;
    for (const auto& shard : shards) sum += which(*shard).value();
    return sum;
  }
  void counter(std::string_view name, std::string_view help, Counter MetricsShard::*which) {
    text.family(name, "counter", help);
    text.sample(model, total([which](const MetricsShard& s) -> const Counter& { return s.*which; }));
  }
  void histogram(std::string_view name, std::string_view help, Histogram MetricsShard::*which) {
    const auto bounds = (shards.front().get()->*which).bounds();
    std::vector<uint64_t> counts(bounds.size() + 1);
    double sum = 0;
    for (const auto& shard : shards) {
      const Histogram& histogram = shard.get()->*which;
      for (size_t i = 0; i < counts.size(); ++i) counts[i] += histogram.count(i);
      sum += histogram.sum();
    }
    text.family(name, "histogram", help);
    text.histogram(model, bounds, counts, sum);
  }
  Labels with(std::string_view name, std::string value) const {
    Labels labels = model;
    labels.emplace_back(name, std::move(value));
    return labels;
  }
};

void write_requests(Page& page) {
  page.counter("vllm:prompt_tokens_total", "Number of prefill tokens processed.", &MetricsShard::prompt_tokens);
  page.counter("vllm:generation_tokens_total", "Number of generation tokens processed.",
               &MetricsShard::generation_tokens);
  page.counter("vllm:prompt_tokens_cached_total", "Number of prompt tokens that were not computed.",
               &MetricsShard::prompt_tokens_cached);
  page.text.family("vllm:request_success_total", "counter", "Count of finished requests by reason.");
  for (size_t i = 0; i < kNumEndings; ++i) {
    page.text.sample(page.with("finished_reason", kEndingNames[i]),
                     page.total([i](const MetricsShard& s) -> const Counter& { return s.request_success[i]; }));
  }
  page.text.family("vllm:admission_rejections_total", "counter", "Requests answered 503 at admission, by reason.");
  for (size_t i = 0; i < kNumRejections; ++i) {
    page.text.sample(page.with("reason", kRejectionNames[i]),
                     page.total([i](const MetricsShard& s) -> const Counter& { return s.admission_rejections[i]; }));
  }
  page.text.family("http_requests_total", "counter", "Responses by class of status.");
  for (size_t i = 1; i < 6; ++i) {
    page.text.sample({{"status", fmt::format("{}xx", i)}},
                     page.total([i](const MetricsShard& s) -> const Counter& { return s.http_requests[i]; }));
  }
}

void write_histograms(Page& page) {
  using S = MetricsShard;
  page.histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", &S::request_prompt_tokens);
  page.histogram("vllm:request_generation_tokens", "Number of generation tokens processed.",
                 &S::request_generation_tokens);
  page.histogram("vllm:request_max_num_generation_tokens", "Maximum number of requested generation tokens.",
                 &S::request_max_num_generation_tokens);
  page.histogram("vllm:request_params_n", "The n request parameter.", &S::request_params_n);
  page.histogram("vllm:request_params_max_tokens", "The max_tokens request parameter.", &S::request_params_max_tokens);
  page.histogram("vllm:time_to_first_token_seconds", "Time to first token in seconds.", &S::time_to_first_token);
  page.histogram("vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", &S::inter_token_latency);
  page.histogram("vllm:request_time_per_output_token_seconds", "Time per output token of a request in seconds.",
                 &S::time_per_output_token);
  page.histogram("vllm:e2e_request_latency_seconds", "End to end request latency in seconds.", &S::e2e_request_latency);
}

// One value per engine, as its last frame said it.
struct EngineFamily {
  const char *name, *type, *help;
  double (*value)(const engine::EngineView&);
};

constexpr double seconds(uint64_t us) {
  return static_cast<double>(us) * 1e-6;
}

double cache_usage(const engine::EngineView& e) {
  if (e.load.num_blocks <= 0) return 0;
  return 1.0 - static_cast<double>(e.load.num_free_blocks) / e.load.num_blocks;
}

constexpr EngineFamily kEngineFamilies[] = {
    {"vllm:num_requests_running", "gauge", "Number of requests in model execution batches.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_running); }},
    {"vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_waiting); }},
    {"vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", cache_usage},
    {"vllm:num_preemptions_total", "counter", "Cumulative number of preemptions from the engine.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_preemptions); }},
    {"vllm:prefix_cache_queries_total", "counter", "Prefix cache queries, in tokens.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.prefix_cache_queries); }},
    {"vllm:prefix_cache_hits_total", "counter", "Prefix cache hits, in tokens.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.prefix_cache_hits); }},
    {"vllm:spec_decode_num_draft_tokens_total", "counter", "Number of draft tokens.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_drafts); }},
    {"vllm:spec_decode_num_accepted_tokens_total", "counter", "Number of accepted draft tokens.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_accepted_drafts); }},
    {"manta_engine_steps_total", "counter", "Steps of the engine.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_steps); }},
    {"manta_engine_up", "gauge", "1 while the engine takes requests.",
     [](const engine::EngineView& e) { return e.state == "ready" ? 1.0 : 0.0; }},
};

void write_engines(Page& page, const std::vector<engine::EngineView>& engines) {
  for (const auto& family : kEngineFamilies) {
    page.text.family(family.name, family.type, family.help);
    for (const auto& engine : engines) {
      page.text.sample(page.with("engine", fmt::format_int(engine.rank).str()), family.value(engine));
    }
  }
  page.text.family("manta_engine_step_seconds_total", "counter", "Where the steps' time went, by part.");
  for (const auto& engine : engines) {
    const std::pair<const char*, uint64_t> parts[] = {{"schedule", engine.load.schedule_us},
                                                      {"forward", engine.load.forward_us},
                                                      {"dispatch", engine.load.dispatch_us},
                                                      {"combine", engine.load.combine_us},
                                                      {"sample", engine.load.sample_us}};
    for (const auto& [part, us] : parts) {
      Labels labels = page.with("engine", fmt::format_int(engine.rank).str());
      labels.emplace_back("part", part);
      page.text.sample(labels, seconds(us));
    }
  }
}

void write_cache_config(Page& page, const std::optional<engine::Welcome>& model) {
  if (!model) return;
  page.text.family("vllm:cache_config_info", "gauge", "Information of the cache configuration.");
  Labels labels = page.with("block_size", fmt::format_int(model->block_size).str());
  labels.emplace_back("num_gpu_blocks", fmt::format_int(model->num_blocks).str());
  page.text.sample(labels, uint64_t{1});
}

struct ProcessUse {
  double cpu_seconds = 0, resident_bytes = 0, virtual_bytes = 0;
};

ProcessUse read_process_use() {
  ProcessUse use;
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');  // the name may hold spaces
  if (name_end == std::string::npos) return use;
  std::istringstream fields(line.substr(name_end + 2));
  std::vector<std::string> values;
  for (std::string value; fields >> value;) values.push_back(value);
  // proc(5), counted from the state behind the name: utime 11, stime 12, vsize 20, rss 21.
  if (values.size() < 22) return use;
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  use.cpu_seconds = (std::strtod(values[11].c_str(), nullptr) + std::strtod(values[12].c_str(), nullptr)) / ticks;
  use.virtual_bytes = std::strtod(values[20].c_str(), nullptr);
  use.resident_bytes = std::strtod(values[21].c_str(), nullptr) * static_cast<double>(sysconf(_SC_PAGESIZE));
  return use;
}

void write_process(Page& page, int64_t num_admitted) {
  const ProcessUse use = read_process_use();
  page.text.family("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.");
  page.text.sample({}, use.cpu_seconds);
  page.text.family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
  page.text.sample({}, use.resident_bytes);
  page.text.family("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.");
  page.text.sample({}, use.virtual_bytes);
  page.text.family("manta:admitted_requests", "gauge", "Sequences this server has admitted and not finished.");
  page.text.sample({}, static_cast<double>(num_admitted));
}

}  // namespace

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].add(1);
  sum_.store(sum_.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
}

MetricsShard::MetricsShard()
    : request_prompt_tokens(kTokenBounds),
      request_generation_tokens(kTokenBounds),
      request_max_num_generation_tokens(kTokenBounds),
      request_params_n(kNBounds),
      request_params_max_tokens(kTokenBounds),
      time_to_first_token(kFirstTokenBounds),
      inter_token_latency(kInterTokenBounds),
      time_per_output_token(kInterTokenBounds),
      e2e_request_latency(kRequestBounds) {}

MetricsShard& Metrics::add_shard() {
  return *shards_.emplace_back(std::make_unique<MetricsShard>());
}

std::string Metrics::expose(const Snapshot& snapshot) const {
  std::string out;
  Page page{MetricsText(out), shards_, {{"model_name", model_name_}}};
  write_requests(page);
  write_histograms(page);
  write_engines(page, snapshot.engines);
  write_cache_config(page, snapshot.model);
  write_process(page, snapshot.num_admitted);
  return out;
}

}  // namespace manta::api
