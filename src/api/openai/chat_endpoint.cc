#include <utility>

#include "api/openai/chat_answer.h"
#include "api/openai/chat_prompt.h"
#include "api/openai/endpoints.h"
#include "api/openai/generation_job.h"
#include "api/openai/request_id.h"

namespace manta::api {
namespace {

struct ChatPlan {
  Prepared prepared;
  ChatOptions options;
};

Problem plan_chat(const LoopContext& context, HttpRequest& http, ChatPlan& plan) {
  Json root;
  ChatRequest request;
  if (auto problem = context.json.parse(http.body, root)) return problem;
  if (auto problem = parse_chat(root, request)) return problem;
  engine::Welcome engine;
  if (auto problem = check_model(context, request.model, engine)) return problem;
  std::vector<PromptInput> prompts(1);
  if (auto problem = render_chat(context, request, prompts[0].text)) return problem;
  if (auto problem = prepare(context, engine, request, std::move(prompts), /*default_max_tokens=*/0, plan.prepared)) {
    return problem;
  }
  plan.options = {.logprobs = request.want_logprobs,
                  .prompt_logprobs = request.num_prompt_logprobs != GenerateRequest::kNone};
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
