// Request ids and the other things HTTP headers say about a generation request.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "api/http/message.h"
#include "api/loop_context.h"

namespace manta::api {

// 32 hex digits.
std::string random_id(std::mt19937_64& random);
// prefix, then X-Request-Id, the body's request_id or a random one.
std::string request_id(const LoopContext& context, const HttpRequest& request, std::string_view prefix,
                       const std::string& from_body);
// X-data-parallel-rank; what is no integer is ignored, as in vLLM.
std::optional<int> data_parallel_rank(const HttpRequest& request);

}  // namespace manta::api
