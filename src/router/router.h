// The P/D front door: an OpenAI server without engines of its own. It tokenizes each request once, sends it to a
// prefill and a decode rank behind api processes, and passes the answer's bytes on unread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "api/server.h"
#include "base/result.h"
#include "base/settings.h"

namespace manta::router {

// Of settings: the endpoints, the policies, the model's tokenizer and all of the HTTP server's.
// on_loop_complete runs once per event loop, when ranks of every role take its requests.
Result<std::unique_ptr<api::ApiServer>> start_router(Settings settings, const std::function<void()>& on_loop_complete);

// The whole life of a `manta router` process; see api::run_server.
Status run_router(const Settings& settings, const std::function<void(const std::string& url)>& on_ready);

}  // namespace manta::router
