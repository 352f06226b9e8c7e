#include "api/openai/request.h"

#include "api/openai/request_fields.h"
#include "base/log.h"

namespace manta::api {
namespace {

// Shared fields of an R. *known tells whether there is one of that name.
Problem read_shared(std::string_view name, Json value, GenerateRequest& request, bool& known) {
  for (const auto fields : {generate_fields(), constraint_fields()}) {
    if (const auto* field = find_field(fields, name)) {
      known = true;
      return field->read(value, request);
    }
  }
  return {};
}

template <typename R>
Problem read_fields(Json root, std::span<const Field<R>> own, R& request) {
  simdjson::dom::object object;
  if (root.get(object) != simdjson::SUCCESS) {
    return bad_shape("body", fmt::format("the body must be a JSON object, got {}", kind_of(root)));
  }
  for (const auto& [name, value] : object) {
    if (value.is_null()) continue;
    bool known = false;
    if (const auto* field = find_field(own, name)) {
      known = true;
      if (auto problem = field->read(value, request)) return problem;
    } else if (auto problem = read_shared(name, value, request, known)) {
      return problem;
    }
    if (!known) spdlog::debug("request field {} is not known and ignored", name);
  }
  return {};
}

// Rules that see more than one field.
Problem check_shared(GenerateRequest& request) {
  if (request.only_prefills) {  // a proxy's copy of its client's request; some leave in it what belongs to the answer
    if (!request.stream) request.stream_options.reset();
    request.min_tokens = std::min(request.min_tokens, request.max_tokens.value_or(request.min_tokens));
  }
  if (request.stream_options && !request.stream) {
    return bad_value("stream_options", "Stream options can only be defined when `stream=True`.");
  }
  if (request.stream && request.num_prompt_logprobs != GenerateRequest::kNone) {
    return bad_value("prompt_logprobs", "`prompt_logprobs` are not available when `stream=True`.");
  }
  if (request.max_tokens && *request.max_tokens > 0 && request.min_tokens > *request.max_tokens) {
    return bad_value("min_tokens", fmt::format("min_tokens must be less than or equal to max_tokens={}, got {}.",
                                               *request.max_tokens, request.min_tokens));
  }
  return {};
}

Problem check_tools(const ChatRequest& request) {
  const ToolChoice choice = request.tool_choice.value_or(ToolChoice::kNone);
  if (request.tools.empty() && choice != ToolChoice::kNone) {
    return bad_value("tool_choice", "When using `tool_choice`, `tools` must be set.");
  }
  return {};
}

}  // namespace

Problem parse_completion(Json root, CompletionRequest& request) {
  if (auto problem = read_fields(root, completion_fields(), request)) return problem;
  if (request.prompts.empty()) return bad_shape("prompt", "prompt: field required");
  if (request.max_tokens && *request.max_tokens == 0 && !request.echo) {
    return bad_value("max_tokens", "max_tokens must be at least 1, got 0.");
  }
  return check_shared(request);
}

Problem parse_chat(Json root, ChatRequest& request) {
  request.add_special_tokens = false;  // the template writes them
  if (auto problem = read_fields(root, chat_fields(), request)) return problem;
  if (request.messages.empty()) return bad_shape("messages", "messages: field required");
  if (request.max_tokens && *request.max_tokens == 0) {
    return bad_value("max_tokens", "max_tokens must be at least 1, got 0.");
  }
  if (request.top_logprobs != 0 && !request.want_logprobs) {
    return bad_value("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.");
  }
  request.num_logprobs = request.want_logprobs ? request.top_logprobs : GenerateRequest::kNone;
  if (request.add_generation_prompt && request.continue_final_message) {
    return bad_value("continue_final_message",
                     "Cannot set both `continue_final_message` and `add_generation_prompt` to True.");
  }
  if (auto problem = check_tools(request)) return problem;
  return check_shared(request);
}

}  // namespace manta::api
