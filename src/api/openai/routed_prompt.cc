#include "api/openai/routed_prompt.h"

#include <utility>

#include "api/openai/chat_prompt.h"
#include "api/openai/prepare.h"
#include "api/openai/request_id.h"

namespace manta::api {
namespace {

bool is_chat(const HttpRequest& http, Json root) {
  if (http.path.ends_with("/invocations")) {  // SageMaker's one door for both
    Json messages;
    return root["messages"].get(messages) == simdjson::SUCCESS;
  }
  return http.path.ends_with("/chat/completions");
}

Problem read_inputs(const LoopContext& context, Json root, bool chat, GenerateRequest& shared,
                    std::vector<PromptInput>& inputs, engine::Welcome& engine) {
  if (!chat) {
    CompletionRequest request;
    if (auto problem = parse_completion(root, request)) return problem;
    if (auto problem = check_model(context, request.model, engine)) return problem;
    if (request.echo && request.num_logprobs != GenerateRequest::kNone) request.num_prompt_logprobs = 0;
    inputs = std::move(request.prompts);
    shared = std::move(request);
    return {};
  }
  ChatRequest request;
  if (auto problem = parse_chat(root, request)) return problem;
  if (auto problem = check_model(context, request.model, engine)) return problem;
  if (auto problem = render_chat(context, request, inputs.emplace_back().text)) return problem;
  shared = std::move(request);
  return {};
}

}  // namespace

Problem read_routed_prompt(const LoopContext& context, HttpRequest& http, RoutedPrompt& out) {
  Json root;
  if (auto problem = context.json.parse(http.body, root)) return problem;
  GenerateRequest request;
  std::vector<PromptInput> inputs;
  engine::Welcome engine;
  if (auto problem = read_inputs(context, root, is_chat(http, root), request, inputs, engine)) return problem;
  if (auto problem = tokenize_inputs(context, engine, request, inputs)) return problem;
  for (auto& input : inputs) out.prompts.push_back(std::move(input.ids));
  out.n = request.n;
  out.max_tokens = request.max_tokens.value_or(0);
  out.wants_prompt_logprobs = request.num_prompt_logprobs != GenerateRequest::kNone;
  out.has_kv_transfer_params = !request.kv_transfer_params.empty();
  out.request_id = request_id(context, http, "", request.request_id);
  out.cache_salt = request.cache_salt;
  return {};
}

}  // namespace manta::api
