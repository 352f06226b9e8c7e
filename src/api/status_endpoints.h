// What operators, load balancers and dashboards ask for.
#pragma once

#include "api/openai/endpoints.h"

namespace manta::api {

// 200 while some engine takes requests and the server does not drain, else 503; the body has every rank.
void handle_health(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
// The same and more for people and programs that watch: counters, step-time split, expert load. Always 200.
void handle_status(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
// A page that shows it, live.
void handle_dashboard(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
void handle_version(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
// {"server_load": n}; n counts only with --enable-server-load-tracking.
void handle_load(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
void handle_metrics(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
// SageMaker's one door: chat when the body has messages, else a completion.
void handle_invocations(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);

}  // namespace manta::api
