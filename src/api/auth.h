// API keys.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/message.h"

namespace manta::api {

// Nothing when the request may pass: no keys are set, the path is not guarded (only /v1/ and /inference/ are), or its
// Bearer token is one of the keys. Else 401. The comparison's time does not depend on the token.
std::optional<HttpResponse> check_api_key(const std::vector<std::string>& keys, std::string_view path,
                                          std::string_view authorization);

}  // namespace manta::api
