#include <utility>

#include "api/openai/completion_answer.h"
#include "api/openai/endpoints.h"
#include "api/openai/generation_job.h"
#include "api/openai/request_id.h"

namespace manta::api {
namespace {

constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's

struct CompletionPlan {
  Prepared prepared;
  CompletionOptions options;
};

Problem plan_completion(const LoopContext& context, HttpRequest& http, CompletionPlan& plan) {
  Json root;
  CompletionRequest request;
  if (auto problem = context.json.parse(http.body, root)) return problem;
  if (auto problem = parse_completion(root, request)) return problem;
  engine::Welcome engine;
  if (auto problem = check_model(context, request.model, engine)) return problem;
  plan.options = {.echo = request.echo,
                  .logprobs = request.num_logprobs != GenerateRequest::kNone,
                  .prompt_logprobs = request.num_prompt_logprobs != GenerateRequest::kNone};
  // Echoed tokens have log probabilities like generated ones.
  if (request.echo && !plan.options.prompt_logprobs) request.num_prompt_logprobs = request.num_logprobs;
  auto prompts = std::move(request.prompts);
  if (auto problem = prepare(context, engine, request, std::move(prompts), kDefaultMaxTokens, plan.prepared)) {
    return problem;
  }
  plan.prepared.id = request_id(context, http, "cmpl-", request.request_id);
  plan.prepared.data_parallel_rank = data_parallel_rank(http);
  return {};
}

}  // namespace

void handle_completions(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer) {
  const auto arrived = std::chrono::steady_clock::now();
  CompletionPlan plan;
  if (auto problem = plan_completion(context, request, plan)) return writer->send(problem->response());
  GenerationJob::start(
      context, writer, std::move(plan.prepared),
      [&plan](const Prepared& prepared, const LoopContext& loop) {
        return make_completion_answer(prepared, loop, plan.options);
      },
      arrived);
}

}  // namespace manta::api
