// Takes a chat answer's text apart while it streams: reasoning, content, tool calls.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/openai/request.h"
#include "api/openai/tool_schema.h"
#include "text/reasoning_parser.h"
#include "text/tool_parser.h"

namespace manta::api {

struct PartsOptions {
  std::string reasoning_parser;  // empty: the answer is all content
  bool thinking = false;
  bool include_reasoning = true;
  std::string tool_parser;  // empty: tool calls are not looked for
  ToolChoice tool_choice = ToolChoice::kNone;
  std::string tool_name;
  bool parallel_tool_calls = true;

  bool is_plain() const {
    return reasoning_parser.empty() && tool_parser.empty() && tool_choice != ToolChoice::kRequired &&
           tool_choice != ToolChoice::kNamed;
  }
};

// One sequence's parser.
class ChatParts {
 public:
  explicit ChatParts(const PartsOptions& options);

  struct Delta {
    std::string reasoning, content;
    std::vector<text::ToolCallDelta> calls;
    bool empty() const { return reasoning.empty() && content.empty() && calls.empty(); }
  };
  // text: what is new. is_last: nothing follows.
  Delta push(std::string_view text, bool is_last);

  int num_calls() const { return num_calls_; }

 private:
  void push_content(std::string_view text, bool is_last, Delta& out);

  const PartsOptions& options_;
  std::optional<text::ReasoningParser> reasoning_;
  std::optional<text::ToolParser> tools_;
  RequiredCallsParser required_;
  bool named_begun_ = false;
  int num_calls_ = 0;
};

}  // namespace manta::api
