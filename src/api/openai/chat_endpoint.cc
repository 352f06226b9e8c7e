#include <algorithm>
#include <utility>

#include "api/openai/chat_answer.h"
#include "api/openai/chat_prompt.h"
#include "api/openai/endpoints.h"
#include "api/openai/generation_job.h"
#include "api/openai/request_id.h"
#include "api/openai/tool_schema.h"

namespace manta::api {
namespace {

struct ChatPlan {
  Prepared prepared;
  ChatOptions options;
};

bool is_true(const ChatRequest& request, std::string_view kwarg) {
  return std::any_of(request.template_kwargs.begin(), request.template_kwargs.end(),
                     [&](const auto& pair) { return pair.first == kwarg && pair.second == "true"; });
}

Problem plan_tools(const Settings& settings, ChatRequest& request, PartsOptions& parts) {
  const bool has_tools = !request.tools.empty();
  parts.tool_choice = request.tool_choice.value_or(has_tools ? ToolChoice::kAuto : ToolChoice::kNone);
  parts.tool_name = request.tool_name;
  parts.parallel_tool_calls = request.parallel_tool_calls;
  if (parts.tool_choice == ToolChoice::kAuto) {
    if (!settings.enable_auto_tool_choice || !settings.tool_call_parser) {
      return bad_value("tool_choice",
                       "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set");
    }
    parts.tool_parser = *settings.tool_call_parser;
  }
  return constrain_to_tools(request);
}

void plan_reasoning(const Settings& settings, const ChatRequest& request, PartsOptions& parts) {
  // A grammar holds from the first token on, so such an answer has no reasoning part to be cut off.
  if (!settings.reasoning_parser || request.grammar.kind != sample::GrammarKind::kNone) return;
  parts.reasoning_parser = *settings.reasoning_parser;
  parts.thinking = is_true(request, "thinking") || is_true(request, "enable_thinking");
  parts.include_reasoning = request.include_reasoning;
}

Problem plan_chat(const LoopContext& context, HttpRequest& http, ChatPlan& plan) {
  Json root;
  ChatRequest request;
  if (auto problem = context.json.parse(http.body, root)) return problem;
  if (auto problem = parse_chat(root, request)) return problem;
  engine::Welcome engine;
  if (auto problem = check_model(context, request.model, engine)) return problem;
  if (auto problem = plan_tools(context.settings, request, plan.options.parts)) return problem;
  plan_reasoning(context.settings, request, plan.options.parts);
  std::vector<PromptInput> prompts(1);
  if (auto problem = render_chat(context, request, prompts[0].text)) return problem;
  if (auto problem = prepare(context, engine, request, std::move(prompts), /*default_max_tokens=*/0, plan.prepared)) {
    return problem;
  }
  plan.options.logprobs = request.want_logprobs;
  plan.options.prompt_logprobs = request.num_prompt_logprobs != GenerateRequest::kNone;
  plan.prepared.id = request_id(context, http, "chatcmpl-", request.request_id);
  plan.prepared.data_parallel_rank = data_parallel_rank(http);
  return {};
}

}  // namespace

void handle_chat_completions(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer) {
  const auto arrived = std::chrono::steady_clock::now();
  ChatPlan plan;
  if (auto problem = plan_chat(context, request, plan)) return writer->send(problem->response());
  GenerationJob::start(
      context, writer, std::move(plan.prepared),
      [&plan](const Prepared& prepared, const LoopContext& loop) {
        return make_chat_answer(prepared, loop, plan.options);
      },
      arrived);
}

}  // namespace manta::api
