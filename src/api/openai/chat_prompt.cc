#include "api/openai/chat_prompt.h"

#include <nlohmann/json.hpp>

namespace manta::api {
namespace {

using OrderedJson = nlohmann::ordered_json;

// simdjson has seen the text, so it parses; a discarded value would be refused by the template.
OrderedJson parse(const std::string& text) {
  return OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
}

// Templates append content without looking whether it is there: a missing one is an empty text (vLLM), except where the
// template tells tool calls by it.
void fill_missing_content(const text::ChatTemplate& chat_template, OrderedJson& messages) {
  if (!messages.is_array()) return;
  for (OrderedJson& message : messages) {
    const auto content = message.find("content");
    if (content == message.end() || !content->is_null()) continue;
    const auto calls = message.find("tool_calls");
    const bool has_calls = calls != message.end() && !calls->empty();
    if (!has_calls || !chat_template.wants_null_content()) *content = "";
  }
}

}  // namespace

Problem render_chat(const LoopContext& context, const ChatRequest& request, std::string& prompt) {
  const auto& chat_template = context.model.chat_template;
  if (!chat_template) {
    return bad_value("messages",
                     "The model's tokenizer has no chat template; give one with --chat-template, or use "
                     "/v1/completions.");
  }
  OrderedJson messages = parse(request.messages);
  fill_missing_content(*chat_template, messages);
  const OrderedJson tools = request.tools.empty() ? OrderedJson() : parse(request.tools);
  const OrderedJson documents = request.documents.empty() ? OrderedJson() : parse(request.documents);
  OrderedJson kwargs = OrderedJson::object();
  for (const auto& [name, value] : request.template_kwargs) kwargs[name] = parse(value);
  auto rendered = chat_template->render({.messages = &messages,
                                         .tools = request.tools.empty() ? nullptr : &tools,
                                         .documents = request.documents.empty() ? nullptr : &documents,
                                         .kwargs = &kwargs,
                                         .add_generation_prompt = request.add_generation_prompt,
                                         .continue_final_message = request.continue_final_message});
  if (!rendered.ok()) {
    ApiError problem = from_error(rendered.error());
    problem.param = "messages";
    return problem;
  }
  prompt = std::move(*rendered);
  return {};
}

}  // namespace manta::api
