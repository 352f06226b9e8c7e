// From messages to the prompt's text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "api/loop_context.h"
#include "api/openai/request.h"

namespace manta::api {

// The variables that a template gets beside the messages: what the server sets for all requests
// (default_chat_template_kwargs), over it what this one sets.
nlohmann::ordered_json template_variables(const Settings& settings, const ChatRequest& request);

// 400 when the template refuses the messages or there is none.
Problem render_chat(const LoopContext& context, const ChatRequest& request, std::string& prompt);

}  // namespace manta::api
