#include "api/status_endpoints.h"

#include "api/openai/json_writer.h"

#ifndef MANTA_VERSION
#error "the build defines MANTA_VERSION"
#endif

namespace manta::api {

void handle_health(const LoopContext& context, HttpRequest, const ResponseWriterPtr& writer) {
  const bool draining = context.draining.load(std::memory_order_relaxed);
  const bool healthy = context.generator.ready() && !draining;
  HttpResponse response{.status = healthy ? 200 : 503};
  JsonWriter json(response.body);
  json.begin_object().key("status").string(healthy ? "ready" : draining ? "draining" : "not ready");
  json.key("ranks").begin_array();
  for (const auto& engine : context.generator.engines()) {
    json.begin_object().key("rank").number(int64_t{engine.rank}).key("state").string(engine.state);
    json.key("host").string(engine.host).key("pid").number(int64_t{engine.pid});
    json.key("epoch").number(static_cast<int64_t>(engine.epoch));
    json.key("num_running").number(int64_t{engine.load.num_running});
    json.key("num_waiting").number(int64_t{engine.load.num_waiting});
    json.key("num_free_blocks").number(int64_t{engine.load.num_free_blocks});
    json.key("num_blocks").number(int64_t{engine.load.num_blocks}).end_object();
  }
  json.end_array().end_object();
  if (!healthy) response.headers.push_back({"Retry-After", "1"});
  writer->send(std::move(response));
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
                                   .routing_simulated = !context.settings.moe_routing_simulation_strategy.empty()};
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
