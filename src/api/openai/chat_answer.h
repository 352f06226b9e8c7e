#pragma once

#include <memory>

#include "api/openai/answer.h"
#include "api/openai/chat_parts.h"

namespace manta::api {

struct ChatOptions {
  bool logprobs = false;
  bool prompt_logprobs = false;
  PartsOptions parts;
};

// Chat messages. request and context outlive it.
std::unique_ptr<Answer> make_chat_answer(const Prepared& request, const LoopContext& context, ChatOptions options);

}  // namespace manta::api
