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

Problem read_inputs(const LoopContext& context, Json root, bool is_chat, RoutedInputs& inputs) {
  if (is_chat) {
    auto chat = std::make_unique<ChatRequest>();
    if (auto problem = parse_chat(root, *chat)) return problem;
    inputs.request = *chat;
    inputs.chat = std::move(chat);
  } else {
    CompletionRequest completion;
    if (auto problem = parse_completion(root, completion)) return problem;
    if (completion.echo && completion.num_logprobs != GenerateRequest::kNone) completion.num_prompt_logprobs = 0;
    inputs.prompts = std::move(completion.prompts);
    inputs.request = std::move(completion);
  }
  return check_model(context, inputs.request.model, inputs.engine);
}

}  // namespace

Problem read_routed_request(const LoopContext& context, HttpRequest& http, RoutedInputs& inputs, RoutedPrompt& out) {
  Json root;
  if (auto problem = context.json.parse(http.body, root)) return problem;
  if (auto problem = read_inputs(context, root, is_chat(http, root), inputs)) return problem;
  const GenerateRequest& request = inputs.request;
  out.n = request.n;
  out.max_tokens = request.max_tokens.value_or(0);
  out.wants_prompt_logprobs = request.num_prompt_logprobs != GenerateRequest::kNone;
  out.has_kv_transfer_params = !request.kv_transfer_params.empty();
  out.request_id = request_id(context, http, "", request.request_id);
  out.cache_salt = request.cache_salt;
  return {};
}

Problem make_routed_prompts(const LoopContext& context, RoutedInputs& inputs, RoutedPrompt& out) {
  if (inputs.chat) {
    if (auto problem = render_chat(context, *inputs.chat, inputs.prompts.emplace_back().text)) return problem;
  }
  if (auto problem = tokenize_inputs(context, inputs.engine, inputs.request, inputs.prompts)) return problem;
  for (auto& input : inputs.prompts) out.prompts.push_back(std::move(input.ids));
  return {};
}

}  // namespace manta::api
