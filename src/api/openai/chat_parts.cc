#include "api/openai/chat_parts.h"

#include <algorithm>
#include <utility>

namespace manta::api {

ChatParts::ChatParts(const PartsOptions& options) : options_(options) {
  if (!options.reasoning_parser.empty()) reasoning_.emplace(options.reasoning_parser, options.thinking);
  if (!options.tool_parser.empty()) tools_.emplace(options.tool_parser);
}

ChatParts::Delta ChatParts::push(std::string_view text, bool is_last) {
  Delta out;
  if (!reasoning_) {
    push_content(text, is_last, out);
  } else {
    text::ReasoningParser::Delta parts;
    reasoning_->push(text, parts);
    if (is_last) reasoning_->finish(parts);
    if (options_.include_reasoning) out.reasoning = std::move(parts.reasoning);
    // A tool call that the grammar makes begins with content, not with the first thought.
    if (!reasoning_->is_reasoning()) push_content(parts.content, is_last, out);
  }
  // OpenAI's parallel_tool_calls false: at most one call; the model was not asked to stop, so the rest is left out.
  if (!options_.parallel_tool_calls) std::erase_if(out.calls, [](const auto& call) { return call.index > 0; });
  for (const auto& call : out.calls) num_calls_ = std::max(num_calls_, call.index + 1);
  return out;
}

void ChatParts::push_content(std::string_view text, bool is_last, Delta& out) {
  if (options_.tool_choice == ToolChoice::kRequired) return required_.push(text, out.calls);
  if (options_.tool_choice == ToolChoice::kNamed) {  // the text is the arguments
    if (!std::exchange(named_begun_, true)) out.calls.push_back({.name = options_.tool_name});
    if (!text.empty()) out.calls.push_back({.arguments = std::string(text)});
    return;
  }
  if (!tools_) {
    out.content += text;
    return;
  }
  text::ToolParser::Delta delta;
  tools_->push(text, delta);
  if (is_last) tools_->finish(delta);
  out.content = std::move(delta.content);
  out.calls = std::move(delta.pieces);
}

}  // namespace manta::api
