// The engine's own answers to prompts of tests/golden/eval.jsonl, one JSON array of token ids a line: what
// tests/product/eval_test.py compares the server's with.
//   manta_eval_tokens COUNT MAX_TOKENS                                              from the repository's root
#include <cstdio>
#include <cstdlib>

#include "eval_prompts.h"
#include "serving.h"

int main(int argc, char** argv) {
  using namespace manta;  // NOLINT
  const size_t count = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 60;
  const int max_tokens = argc > 2 ? std::atoi(argv[2]) : 64;
  exec::LocalExecutorOptions options;
  options.model = exec::kTinyModel;
  options.max_num_seqs = 16;
  options.num_blocks = 512;
  options.max_model_len = 4096;
  auto executor = exec::make_local_executor(std::move(options));
  if (!executor.ok()) {
    std::fprintf(stderr, "eval_tokens: %s\n", executor.error().message.c_str());
    return 1;
  }
  std::vector<sched::Request> requests;
  for (const auto& prompt : exec::EvalPrompts().some(count)) {
    sched::Request& request = requests.emplace_back();
    request.tokens = prompt.tokens;
    request.num_prompt_tokens = static_cast<int>(prompt.tokens.size());
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    request.sampling.eos_token_ids = {exec::kEos};
  }
  exec::Serving serving(std::move(executor).value(), true, 2);
  for (const auto& answer : serving.run(requests)) std::puts(nlohmann::json(answer.tokens).dump().c_str());
  return ::testing::Test::HasFailure() ? 1 : 0;
}
