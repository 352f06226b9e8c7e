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

// The request's own template where requests are trusted with that, else the model's.
Problem choose_template(const LoopContext& context, const ChatRequest& request,
                        std::shared_ptr<const text::ChatTemplate>& out) {
  out = context.model.chat_template;
  if (!request.chat_template.empty()) {
    if (!context.settings.trust_request_chat_template) {
      return bad_value("chat_template",
                       "Chat template is passed with request, but --trust-request-chat-template is not set. "
                       "Refused request with untrusted chat template.");
    }
    auto parsed = text::ChatTemplate::parse(request.chat_template, context.model.tokenizer_config);
    if (!parsed.ok()) return bad_value("chat_template", parsed.error().message);
    out = std::move(*parsed);
  }
  if (out) return {};
  return bad_value("messages",
                   "The model's tokenizer has no chat template; give one with --chat-template, or use "
                   "/v1/completions.");
}

bool shows_tools(const Settings& settings, const ChatRequest& request) {
  if (request.tools.empty()) return false;
  return !settings.exclude_tools_when_tool_choice_none || request.tool_choice != ToolChoice::kNone;
}

}  // namespace

OrderedJson template_variables(const Settings& settings, const ChatRequest& request) {
  OrderedJson variables = parse(settings.default_chat_template_kwargs.text);
  for (const auto& [name, value] : request.template_kwargs) variables[name] = parse(value);
  return variables;
}

Problem render_chat(const LoopContext& context, const ChatRequest& request, std::string& prompt) {
  std::shared_ptr<const text::ChatTemplate> chat_template;
  if (auto problem = choose_template(context, request, chat_template)) return problem;
  OrderedJson messages = parse(request.messages);
  fill_missing_content(*chat_template, messages);
  const bool with_tools = shows_tools(context.settings, request);
  const OrderedJson tools = with_tools ? parse(request.tools) : OrderedJson();
  const OrderedJson documents = request.documents.empty() ? OrderedJson() : parse(request.documents);
  const OrderedJson kwargs = template_variables(context.settings, request);
  auto rendered = chat_template->render({.messages = &messages,
                                         .tools = with_tools ? &tools : nullptr,
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
