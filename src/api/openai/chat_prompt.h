// From messages to the prompt's text.
#pragma once

#include <string>

#include "api/loop_context.h"
#include "api/openai/request.h"

namespace manta::api {

// 400 when the template refuses the messages or there is none.
Problem render_chat(const LoopContext& context, const ChatRequest& request, std::string& prompt);

}  // namespace manta::api
