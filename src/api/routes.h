// Which handler answers which path.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "api/openai/api_error.h"
#include "api/openai/endpoints.h"

namespace manta::api {

struct Route {
  std::string_view path;
  std::string_view method;
  Handler handler = nullptr;
  bool generates = false;  // refused while the server drains
};

std::span<const Route> routes();

struct Match {
  const Route* route = nullptr;
  std::optional<ApiError> problem;  // 404, 405, or an endpoint of vLLM that is not served
  std::string allow;                // with 405: the methods there are
};
// HEAD is answered like GET, without the body.
Match find_route(std::string_view method, std::string_view path);

}  // namespace manta::api
