#include "api/cors.h"

#include <fmt/format.h>

#include <algorithm>

namespace manta::api {
namespace {

constexpr const char* kPreflightSeconds = "600";  // how long a browser may keep the answer

bool allows_all(const std::vector<std::string>& list) {
  return std::find(list.begin(), list.end(), "*") != list.end();
}

bool allows(const std::vector<std::string>& list, std::string_view value) {
  return allows_all(list) ||
         std::any_of(list.begin(), list.end(), [&](const auto& one) { return equals_ignoring_case(one, value); });
}

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

// The first of a comma-separated list that is not allowed; empty: all are.
std::string_view first_refused(const std::vector<std::string>& list, std::string_view names) {
  while (!names.empty()) {
    const size_t comma = std::min(names.find(','), names.size());
    const std::string_view name = trimmed(names.substr(0, comma));
    if (!name.empty() && !allows(list, name)) return name;
    names.remove_prefix(std::min(comma + 1, names.size()));
  }
  return {};
}

HttpResponse refused(const std::string& what) {
  return {.status = 400, .content_type = "text/plain; charset=utf-8", .body = "Disallowed CORS " + what};
}

}  // namespace

std::vector<HttpHeader> cors_headers(const Settings& settings, const HttpRequest& head) {
  const std::string_view origin = head.header("Origin");
  if (origin.empty() || !allows(settings.allowed_origins, origin)) return {};
  std::vector<HttpHeader> headers;
  // Browsers refuse "*" for requests with credentials, so those are told their own origin.
  if (allows_all(settings.allowed_origins) && !settings.allow_credentials) {
    headers.push_back({"Access-Control-Allow-Origin", "*"});
  } else {
    headers.push_back({"Access-Control-Allow-Origin", std::string(origin)});
    headers.push_back({"Vary", "Origin"});
  }
  if (settings.allow_credentials) headers.push_back({"Access-Control-Allow-Credentials", "true"});
  return headers;
}

std::optional<HttpResponse> answer_preflight(const Settings& settings, const HttpRequest& head,
                                             const std::string& methods) {
  const std::string_view wanted_method = head.header("Access-Control-Request-Method");
  const std::string_view wanted_headers = head.header("Access-Control-Request-Headers");
  if (head.method != "OPTIONS" || head.header("Origin").empty() || wanted_method.empty()) return {};
  if (!allows(settings.allowed_origins, head.header("Origin"))) {
    return refused(fmt::format("origin: {} (--allowed-origins)", head.header("Origin")));
  }
  if (!allows(settings.allowed_methods, wanted_method)) {
    return refused(fmt::format("method: {} (--allowed-methods)", wanted_method));
  }
  if (const auto name = first_refused(settings.allowed_headers, wanted_headers); !name.empty()) {
    return refused(fmt::format("header: {} (--allowed-headers)", name));
  }
  HttpResponse response{.status = 200, .content_type = "text/plain; charset=utf-8", .body = "OK"};
  response.headers.push_back({"Access-Control-Allow-Methods", methods});
  response.headers.push_back({"Access-Control-Max-Age", kPreflightSeconds});
  if (!wanted_headers.empty()) {
    response.headers.push_back({"Access-Control-Allow-Headers", std::string(wanted_headers)});
  }
  return response;
}

}  // namespace manta::api
