#include "api/routes.h"

#include <fmt/format.h>

#include "api/status_endpoints.h"

namespace manta::api {
namespace {

constexpr Route kRoutes[] = {
    {"/v1/chat/completions", "POST", handle_chat_completions, true},
    {"/v1/completions", "POST", handle_completions, true},
    {"/v1/models", "GET", handle_models},
    {"/tokenize", "POST", handle_tokenize},
    {"/detokenize", "POST", handle_detokenize},
    {"/tokenizer_info", "GET", handle_tokenizer_info},
    {"/invocations", "POST", handle_invocations, true},
    {"/health", "GET", handle_health},
    {"/ping", "GET", handle_health},
    {"/ping", "POST", handle_health},
    {"/status", "GET", handle_status},
    {"/dashboard", "GET", handle_dashboard},
    {"/version", "GET", handle_version},
    {"/load", "GET", handle_load},
    {"/metrics", "GET", handle_metrics},
};

// Endpoints of vLLM that this server knows of and does not have.
struct Unserved {
  std::string_view path;
  std::string_view why;
};
constexpr std::string_view kNoPooling =
    "The model does not support this API: it generates text, it does not embed, "
    "classify or score.";
constexpr std::string_view kNoAudio = "The model does not support this API: it takes and gives text only.";
constexpr std::string_view kNoLora = "LoRA adapters are not served.";
constexpr Unserved kUnserved[] = {
    {"/v1/embeddings", kNoPooling},
    {"/pooling", kNoPooling},
    {"/classify", kNoPooling},
    {"/score", kNoPooling},
    {"/v1/score", kNoPooling},
    {"/rerank", kNoPooling},
    {"/v1/rerank", kNoPooling},
    {"/v2/rerank", kNoPooling},
    {"/v1/audio/transcriptions", kNoAudio},
    {"/v1/audio/translations", kNoAudio},
    {"/v1/responses", "The Responses API is not served; use /v1/chat/completions."},
    {"/v1/messages", "The Anthropic API is not served; use /v1/chat/completions."},
    {"/v1/messages/count_tokens", "The Anthropic API is not served; use /tokenize."},
    {"/inference/v1/generate",
     "This API is not served; /v1/completions takes token ids and gives them with return_token_ids."},
    {"/v1/load_lora_adapter", kNoLora},
    {"/v1/unload_lora_adapter", kNoLora},
    {"/scale_elastic_ep", "Elastic scaling is not served."},
    {"/is_scaling_elastic_ep", "Elastic scaling is not served."},
    {"/start_profile", "Profiling is not served; step times are in /metrics."},
    {"/stop_profile", "Profiling is not served; step times are in /metrics."},
    {"/sleep", "Sleep mode is not served."},
    {"/wake_up", "Sleep mode is not served."},
    {"/is_sleeping", "Sleep mode is not served."},
    {"/reset_prefix_cache", "Resetting the prefix cache is not served; use cache_salt to separate requests."},
    {"/collective_rpc", "There are no Python workers to call."},
};

}  // namespace

std::span<const Route> routes() {
  return kRoutes;
}

Match find_route(std::string_view method, std::string_view path) {
  const std::string_view wanted = method == "HEAD" ? "GET" : method;
  Match match;
  for (const Route& route : kRoutes) {
    if (route.path != path) continue;
    if (route.method == wanted) return {.route = &route};
    match.allow += match.allow.empty() ? "" : ", ";
    match.allow += route.method;
  }
  if (!match.allow.empty()) {
    match.problem =
        ApiError{.status = 405,
                 .type = "MethodNotAllowedError",
                 .message = fmt::format("Method {} is not allowed here; allowed: {}.", method, match.allow)};
    return match;
  }
  for (const auto& unserved : kUnserved) {
    if (unserved.path == path) {
      match.problem = not_implemented("", std::string(unserved.why));
      return match;
    }
  }
  match.problem = not_found(fmt::format("There is nothing at {}.", path));
  return match;
}

}  // namespace manta::api
