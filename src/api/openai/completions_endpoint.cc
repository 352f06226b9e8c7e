#include <memory>
#include <utility>

#include "api/openai/completion_answer.h"
#include "api/openai/endpoints.h"
#include "api/openai/generation_job.h"
#include "api/openai/request_id.h"

namespace manta::api {
namespace {

constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's

// A request between its parts: read on the loop, prepared perhaps beside it, started on the loop.
struct CompletionPlan {
  CompletionRequest request;
  engine::Welcome engine;
  std::shared_ptr<const Relayed> relayed;
  Admission::Ticket ticket;
  Prepared prepared;
  CompletionOptions options;
  Problem problem;
};

Problem read_completion(const LoopContext& context, HttpRequest& http, CompletionPlan& plan) {
  Json root;
  CompletionRequest& request = plan.request;
  if (auto problem = context.json.parse(http.body, root)) return problem;
  if (auto problem = parse_completion(root, request)) return problem;
  if (auto problem = check_model(context, request.model, plan.engine)) return problem;
  plan.options = {.echo = request.echo,
                  .logprobs = request.num_logprobs != GenerateRequest::kNone,
                  .prompt_logprobs = request.num_prompt_logprobs != GenerateRequest::kNone};
  // Echoed tokens have log probabilities like generated ones.
  if (request.echo && !plan.options.prompt_logprobs) request.num_prompt_logprobs = request.num_logprobs;
  plan.prepared.id = request_id(context, http, "cmpl-", request.request_id);
  plan.prepared.data_parallel_rank = data_parallel_rank(http);
  plan.relayed = http.relayed;
  return GenerationJob::admit(context, static_cast<int64_t>(request.prompts.size()) * request.n, plan.ticket);
}

// May run beside the loop: of the context it reads settings and model only.
Problem prepare_completion(const LoopContext& context, CompletionPlan& plan) {
  auto prompts = std::move(plan.request.prompts);
  if (plan.relayed) {
    if (auto problem = take_relayed_prompts(*plan.relayed, prompts)) return problem;
  }
  if (auto problem =
          prepare(context, plan.engine, plan.request, std::move(prompts), kDefaultMaxTokens, plan.prepared)) {
    return problem;
  }
  take_relayed(plan.relayed, plan.prepared);
  return {};
}

}  // namespace

void handle_completions(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer) {
  const auto arrived = std::chrono::steady_clock::now();
  auto plan = std::make_shared<CompletionPlan>();
  if (auto problem = read_completion(context, request, *plan)) return writer->send(problem->response());
  context.offload.run(
      request.body.size(), writer, [&context, plan] { plan->problem = prepare_completion(context, *plan); },
      [&context, plan, writer, arrived] {
        if (plan->problem) return writer->send(plan->problem->response());
        GenerationJob::start(
            context, writer, std::move(plan->prepared), std::move(plan->ticket),
            [&plan](const Prepared& prepared, const LoopContext& loop) {
              return make_completion_answer(prepared, loop, plan->options);
            },
            arrived);
      });
}

}  // namespace manta::api
