#include "api/status_endpoints.h"

#include <algorithm>

#include "api/dashboard_page.h"
#include "api/openai/json_writer.h"
#include "cluster/node_plan.h"

#ifndef MANTA_VERSION
#error "the build defines MANTA_VERSION"
#endif

namespace manta::api {

namespace {

const char* status_of(const LoopContext& context) {
  if (context.draining.load(std::memory_order_relaxed)) return "draining";
  return context.generator.ready() ? "ready" : "not ready";
}

// Who it is, how it is and how full; the object stays open.
void begin_rank(JsonWriter& json, const engine::EngineView& engine) {
  json.begin_object().key("role").string(engine.role).key("rank").number(int64_t{engine.rank});
  json.key("pid").number(int64_t{engine.pid}).key("host").string(engine.host);
  json.key("state").string(engine.state).key("epoch").number(static_cast<int64_t>(engine.epoch));
  json.key("num_running").number(int64_t{engine.load.num_running});
  json.key("num_waiting").number(int64_t{engine.load.num_waiting});
  json.key("num_free_blocks").number(int64_t{engine.load.num_free_blocks});
  json.key("num_blocks").number(int64_t{engine.load.num_blocks});
  json.key("where").begin_object().key("step").number(static_cast<int64_t>(engine.step));
  json.key("layer").number(int64_t{engine.layer}).key("stage").string(engine.stage);
  json.key("busy").boolean(engine.busy).end_object();
}

// Under the names that /metrics has them by.
void write_counters(JsonWriter& json, const LoopContext& context, const engine::EngineView& engine) {
  const auto number = [&json](std::string_view name, uint64_t value) {
    json.key(name).number(static_cast<int64_t>(value));
  };
  const engine::Load& load = engine.load;
  json.key("counters").begin_object();
  number("manta_engine_steps_total", load.num_steps);
  number("manta_dummy_steps_total", load.num_dummy_steps);
  number("manta_ep_dispatch_rows_total", load.ep_dispatch_rows);
  number("manta_ep_dispatch_bytes_total", load.ep_dispatch_bytes);
  number("manta_eplb_rearrangements_total", load.num_eplb_rearrangements);
  number("manta_ep_group_ranks", load.group_size);
  number("manta_membership_epoch", engine.epoch);
  number("manta_routing_simulated", !context.settings.moe_routing_simulation_strategy.empty());
  number("vllm:prompt_tokens_total", load.num_prompt_tokens);
  number("vllm:generation_tokens_total", load.num_generation_tokens);
  json.key("manta_requests_resubmitted_total").begin_object();
  for (size_t i = 0; i < engine::kNumResubmitReasons; ++i) {
    const auto reason = static_cast<engine::ResubmitReason>(i);
    number(to_string(reason), context.metrics.resubmitted(engine.rank, reason));
  }
  json.end_object().key("manta_dbo_steps_total").begin_object();
  number("split", load.dbo_split_steps);
  number("vote_failed", load.dbo_vote_failed_steps);
  number("below_threshold", load.dbo_below_threshold_steps);
  json.end_object().end_object();
  json.key("step_us").begin_object();
  number("schedule", load.schedule_us);
  number("agree", load.agree_wait_us);
  number("forward", load.forward_us);
  number("dispatch", load.dispatch_us);
  number("combine", load.combine_us);
  number("sample", load.sample_us);
  json.end_object();
}

// Of those that this server sends requests to.
void write_missing_ranks(JsonWriter& json, const LoopContext& context, const std::vector<engine::EngineView>& engines) {
  const cluster::NodePlan plan = cluster::plan_node(context.settings);
  json.key("missing_ranks").begin_array();
  for (int rank = plan.first_served; rank < plan.first_served + plan.num_served; ++rank) {
    const bool there = std::ranges::any_of(engines, [rank](const auto& engine) { return engine.rank == rank; });
    if (!there) json.number(int64_t{rank});
  }
  json.end_array();
}

// Every rank of a group reports the same window; one is enough.
void write_experts(JsonWriter& json, const std::vector<engine::EngineView>& engines) {
  json.key("experts");
  for (const auto& engine : engines) {
    if (!engine.experts) continue;
    const engine::ExpertReport& report = *engine.experts;
    json.begin_object().key("num_layers").number(int64_t{report.num_layers});
    json.key("num_experts").number(int64_t{report.num_experts}).key("balancedness").begin_array();
    for (const double balancedness : report.balancedness) json.number(balancedness);
    json.end_array().key("tokens").begin_array();
    for (const uint64_t tokens : report.tokens) json.number(static_cast<int64_t>(tokens));
    json.end_array().end_object();
    return;
  }
  json.null();
}

}  // namespace

void handle_health(const LoopContext& context, HttpRequest, const ResponseWriterPtr& writer) {
  const std::string_view status = status_of(context);
  HttpResponse response{.status = status == "ready" ? 200 : 503};
  JsonWriter json(response.body);
  json.begin_object().key("status").string(status).key("ranks").begin_array();
  for (const auto& engine : context.generator.engines()) {
    begin_rank(json, engine);
    json.end_object();
  }
  json.end_array().end_object();
  if (response.status != 200) response.headers.push_back({"Retry-After", "1"});
  writer->send(std::move(response));
}

void handle_status(const LoopContext& context, HttpRequest, const ResponseWriterPtr& writer) {
  const auto engines = context.generator.engines();
  HttpResponse response;
  JsonWriter json(response.body);
  json.begin_object().key("status").string(status_of(context)).key("version").string(MANTA_VERSION);
  json.key("model").string(context.model.names.front()).key("ranks").begin_array();
  for (const auto& engine : engines) {
    begin_rank(json, engine);
    write_counters(json, context, engine);
    json.end_object();
  }
  json.end_array();
  write_missing_ranks(json, context, engines);
  write_experts(json, engines);
  json.end_object();
  writer->send(std::move(response));
}

void handle_dashboard(const LoopContext&, HttpRequest, const ResponseWriterPtr& writer) {
  writer->send({.content_type = "text/html; charset=utf-8", .body = kDashboardPage});
}

void handle_version(const LoopContext&, HttpRequest, const ResponseWriterPtr& writer) {
  writer->send({.body = "{\"version\":\"" MANTA_VERSION "\"}"});
}

void handle_load(const LoopContext& context, HttpRequest, const ResponseWriterPtr& writer) {
  const int64_t load = context.settings.enable_server_load_tracking ? context.admission.num_admitted() : 0;
  HttpResponse response;
  JsonWriter(response.body).begin_object().key("server_load").number(load).end_object();
  writer->send(std::move(response));
}

void handle_metrics(const LoopContext& context, HttpRequest, const ResponseWriterPtr& writer) {
  const Metrics::Snapshot snapshot{.engines = context.generator.engines(),
                                   .model = context.generator.model(),
                                   .num_admitted = context.admission.num_admitted(),
                                   .routing_simulated = !context.settings.moe_routing_simulation_strategy.empty(),
                                   .kv_connector = context.settings.kv_transfer_config.kv_connector.value_or("")};
  writer->send({.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = context.metrics.expose(snapshot)});
}

void handle_invocations(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer) {
  Json root;
  if (auto problem = context.json.parse(request.body, root)) return writer->send(problem->response());
  Json messages;
  const bool is_chat = root["messages"].get(messages) == simdjson::SUCCESS;
  (is_chat ? handle_chat_completions : handle_completions)(context, std::move(request), writer);
}

}  // namespace manta::api
