// Cross-origin requests (the CORS protocol of the Fetch standard), so that a web page can call the API: what vLLM
// answers through Starlette, from the same settings.
#pragma once

#include <optional>
#include <vector>

#include "api/http/message.h"
#include "base/settings.h"

namespace manta::api {

// Headers of the answer to a request that carries Origin; none for others.
std::vector<HttpHeader> cors_headers(const Settings& settings, const HttpRequest& head);

// The answer to a browser that asks before it sends: OPTIONS with Access-Control-Request-Method. Nothing for any other
// request. methods: those the route has, "GET, POST". 400 names what is not allowed.
std::optional<HttpResponse> answer_preflight(const Settings& settings, const HttpRequest& head,
                                             const std::string& methods);

}  // namespace manta::api
