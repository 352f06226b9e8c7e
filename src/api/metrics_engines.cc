#include <utility>

#include "api/metrics_page.h"

namespace manta::api {
namespace {

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
    {"manta_kv_leases", "gauge", "Hand-offs of cache rows to other engines that are not over.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_kv_leases); }},
    {"manta_kv_stale_readers_total", "counter", "Readers that came for a hand-off that was over, and were refused.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_kv_refused); }},
    {"vllm:nixl_num_failed_transfers_total", "counter", "Number of failed KV transfers.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_kv_failed); }},
    {"vllm:nixl_num_kv_expired_reqs_total", "counter", "Number of requests whose KV expired before it was fetched.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_kv_expired); }},
    {"vllm:spec_decode_num_draft_tokens_total", "counter", "Number of draft tokens.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_drafts); }},
    {"vllm:spec_decode_num_accepted_tokens_total", "counter", "Number of accepted draft tokens.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_accepted_drafts); }},
    {"manta_engine_steps_total", "counter", "Steps of the engine.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_steps); }},
    {"manta_dummy_steps_total", "counter", "Steps without rows of its own, so that other ranks' collectives find it.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_dummy_steps); }},
    {"manta_aborted_steps_total", "counter", "Steps of a group that fell apart; their requests are computed again.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_aborted_steps); }},
    {"manta_ep_dispatch_rows_total", "counter", "Rows sent to experts of other ranks.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.ep_dispatch_rows); }},
    {"manta_ep_dispatch_bytes_total", "counter", "Bytes of the rows sent to experts of other ranks.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.ep_dispatch_bytes); }},
    {"manta_eplb_rearrangements_total", "counter", "Times that experts were placed anew.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.num_eplb_rearrangements); }},
    {"manta_ep_group_ranks", "gauge", "Ranks of the expert-parallel group that the engine is in; 0 while it waits.",
     [](const engine::EngineView& e) { return static_cast<double>(e.load.group_size); }},
    {"manta_membership_epoch", "gauge", "Epoch of the group that the engine is in.",
     [](const engine::EngineView& e) { return static_cast<double>(e.epoch); }},
    {"manta_engine_up", "gauge", "1 while the engine takes requests.",
     [](const engine::EngineView& e) { return e.state == "ready" ? 1.0 : 0.0; }},
};

// One sample per engine and value of a label.
using Parts = std::initializer_list<std::pair<const char*, double>>;
void write_parts(Page& page, int rank, std::string_view label, Parts parts) {
  for (const auto& [name, value] : parts) {
    Labels labels = page.of_engine(rank);
    labels.emplace_back(label, name);
    page.text.sample(labels, value);
  }
}

void write_step_split(Page& page, const std::vector<engine::EngineView>& engines) {
  page.text.family("manta_engine_step_seconds_total", "counter", "Where the steps' time went, by part.");
  for (const auto& engine : engines) {
    const engine::Load& load = engine.load;
    write_parts(page, engine.rank, "part",
                {{"schedule", seconds(load.schedule_us)},
                 {"agree", seconds(load.agree_wait_us)},
                 {"forward", seconds(load.forward_us)},
                 {"dispatch", seconds(load.dispatch_us)},
                 {"combine", seconds(load.combine_us)},
                 {"sample", seconds(load.sample_us)}});
  }
  page.text.family("manta_engine_step_duration_seconds", "histogram", "How long the engine's steps took, all parts.");
  for (const auto& engine : engines) {
    const engine::Load& load = engine.load;
    const double sum = seconds(load.forward_us + load.dispatch_us + load.combine_us + load.sample_us);
    page.text.histogram(page.of_engine(engine.rank), engine::kStepTimeBounds, engine.step_times, sum);
  }
  page.text.family("manta_dbo_steps_total", "counter", "Steps by what became of splitting them in two microbatches.");
  for (const auto& engine : engines) {
    const engine::Load& load = engine.load;
    write_parts(page, engine.rank, "result",
                {{"split", static_cast<double>(load.dbo_split_steps)},
                 {"vote_failed", static_cast<double>(load.dbo_vote_failed_steps)},
                 {"below_threshold", static_cast<double>(load.dbo_below_threshold_steps)}});
  }
}

void write_experts(Page& page, const std::vector<engine::EngineView>& engines) {
  page.text.family("manta_eplb_balancedness", "gauge",
                   "Mean over ranks / max over ranks of the tokens routed to their experts, in the last window.");
  for (const auto& engine : engines) {
    if (!engine.experts) continue;
    const auto& by_layer = engine.experts->balancedness;
    for (size_t layer = 0; layer < by_layer.size(); ++layer) {
      Labels labels = page.of_engine(engine.rank);
      labels.emplace_back("layer", std::to_string(layer));
      page.text.sample(labels, by_layer[layer]);
    }
  }
}

void write_cache_config(Page& page, const std::optional<engine::Welcome>& model) {
  if (!model) return;
  page.text.family("vllm:cache_config_info", "gauge", "Information of the cache configuration.");
  Labels labels = page.with("block_size", std::to_string(model->block_size));
  labels.emplace_back("num_gpu_blocks", std::to_string(model->num_blocks));
  page.text.sample(labels, uint64_t{1});
}

}  // namespace

void write_kv_transfer(Page& page, const Metrics::Snapshot& snapshot) {
  page.text.family("manta_kv_transfer_bytes_total", "counter",
                   "Cache rows from (received) and to (sent) other engines.");
  for (const auto& engine : snapshot.engines) {
    const std::pair<const char*, uint64_t> sides[] = {{"received", engine.load.kv_bytes_received},
                                                      {"sent", engine.load.kv_bytes_sent}};
    for (const auto& [side, bytes] : sides) {
      Labels labels = page.of_engine(engine.rank);
      labels.emplace_back("connector", snapshot.kv_connector);
      labels.emplace_back("side", side);
      page.text.sample(labels, bytes);
    }
  }
}

void write_engines(Page& page, const Metrics::Snapshot& snapshot) {
  for (const auto& family : kEngineFamilies) {
    page.text.family(family.name, family.type, family.help);
    for (const auto& engine : snapshot.engines) page.text.sample(page.of_engine(engine.rank), family.value(engine));
  }
  page.text.family("manta_routing_simulated", "gauge", "1 while routing is simulated: outputs are then meaningless.");
  for (const auto& engine : snapshot.engines) {
    page.text.sample(page.of_engine(engine.rank), uint64_t{snapshot.routing_simulated});
  }
  write_step_split(page, snapshot.engines);
  if (!snapshot.kv_connector.empty()) write_kv_transfer(page, snapshot);
  write_experts(page, snapshot.engines);
  write_cache_config(page, snapshot.model);
}

}  // namespace manta::api
