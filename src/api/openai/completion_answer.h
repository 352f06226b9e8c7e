#pragma once

#include <memory>

#include "api/openai/answer.h"

namespace manta::api {

struct CompletionOptions {
  bool echo = false;
  bool logprobs = false;
  bool prompt_logprobs = false;  // asked for by that name
};

// Text completions. request and context outlive it.
std::unique_ptr<Answer> make_completion_answer(const Prepared& request, const LoopContext& context,
                                               CompletionOptions options);

}  // namespace manta::api
