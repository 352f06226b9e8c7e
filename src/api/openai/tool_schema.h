// The grammar behind tool_choice required and a named tool, and how the text made under it becomes calls.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "api/openai/request.h"
#include "text/tool_parser.h"

namespace manta::api {

// Constrains request.grammar where tool_choice asks for it: to the named tool's arguments, or to an array of
// {"name", "parameters"}. The problem: no such tool, or there is another constraint already.
Problem constrain_to_tools(ChatRequest& request);

// Reads the array of required calls while it streams: a call is given as soon as its object is complete.
class RequiredCallsParser {
 public:
  void push(std::string_view text, std::vector<text::ToolCallDelta>& out);

 private:
  std::string object_;  // of the call that has begun, "{" on
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false;
  int num_calls_ = 0;
};

}  // namespace manta::api
