#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "api/openai/chat_answer.h"
#include "api/openai/chat_prompt.h"
#include "api/openai/endpoints.h"
#include "api/openai/generation_job.h"
#include "api/openai/request_id.h"
#include "api/openai/tool_schema.h"

namespace manta::api {
namespace {

// A request between its parts: read on the loop, prepared perhaps beside it, started on the loop.
struct ChatPlan {
  ChatRequest request;
  engine::Welcome engine;
  std::shared_ptr<const Relayed> relayed;
  Admission::Ticket ticket;
  Prepared prepared;
  ChatOptions options;
  Problem problem;
};

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

// Whether the prompt ends behind its last reasoning part, as the templates of models that may think write it for an
// answer without thoughts.
bool reasoning_is_over(const ServedModel& model, const std::vector<TokenId>& prompt) {
  for (auto id = prompt.rbegin(); id != prompt.rend(); ++id) {
    if (*id == model.reasoning_end) return true;
    if (*id == model.reasoning_start) return false;
  }
  return false;
}

// What is constrained is the answer; the thoughts before it are free.
void plan_reasoning(const LoopContext& context, const ChatRequest& request, ChatPlan& plan) {
  if (!context.settings.reasoning_parser) return;
  if (reasoning_is_over(context.model, plan.prepared.prompts.front().ids)) return;
  PartsOptions& parts = plan.options.parts;
  parts.reasoning_parser = *context.settings.reasoning_parser;
  const auto variables = template_variables(context.settings, request);
  const auto is_true = [&](const char* name) { return variables.contains(name) && variables[name] == true; };
  parts.thinking = is_true("thinking") || is_true("enable_thinking");
  parts.include_reasoning = request.include_reasoning;
  if (!context.settings.structured_outputs_config.enable_in_reasoning &&
      text::ReasoningParser::begins_with_reasoning(parts.reasoning_parser, parts.thinking)) {
    plan.prepared.sampling.grammar.after_token = context.model.reasoning_end;
  }
}

Problem read_chat(const LoopContext& context, HttpRequest& http, ChatPlan& plan) {
  Json root;
  ChatRequest& request = plan.request;
  if (auto problem = context.json.parse(http.body, root)) return problem;
  if (auto problem = parse_chat(root, request)) return problem;
  if (auto problem = check_model(context, request.model, plan.engine)) return problem;
  if (auto problem = plan_tools(context.settings, request, plan.options.parts)) return problem;
  plan.options.logprobs = request.want_logprobs;
  plan.options.prompt_logprobs = request.num_prompt_logprobs != GenerateRequest::kNone;
  plan.prepared.id = request_id(context, http, "chatcmpl-", request.request_id);
  plan.prepared.data_parallel_rank = data_parallel_rank(http);
  plan.relayed = http.relayed;
  return GenerationJob::admit(context, request.n, plan.ticket);
}

// May run beside the loop: of the context it reads settings and model only.
Problem prepare_chat(const LoopContext& context, ChatPlan& plan) {
  std::vector<PromptInput> prompts(1);
  if (plan.relayed) {
    if (auto problem = take_relayed_prompts(*plan.relayed, prompts)) return problem;
  } else if (auto problem = render_chat(context, plan.request, prompts[0].text)) {
    return problem;
  }
  if (auto problem =
          prepare(context, plan.engine, plan.request, std::move(prompts), /*default_max_tokens=*/0, plan.prepared)) {
    return problem;
  }
  plan_reasoning(context, plan.request, plan);
  take_relayed(plan.relayed, plan.prepared);
  return {};
}

}  // namespace

void handle_chat_completions(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer) {
  const auto arrived = std::chrono::steady_clock::now();
  auto plan = std::make_shared<ChatPlan>();
  if (auto problem = read_chat(context, request, *plan)) return writer->send(problem->response());
  context.offload.run(
      request.body.size(), writer, [&context, plan] { plan->problem = prepare_chat(context, *plan); },
      [&context, plan, writer, arrived] {
        if (plan->problem) return writer->send(plan->problem->response());
        GenerationJob::start(
            context, writer, std::move(plan->prepared), std::move(plan->ticket),
            [&plan](const Prepared& prepared, const LoopContext& loop) {
              return make_chat_answer(prepared, loop, plan->options);
            },
            arrived);
      });
}

}  // namespace manta::api
