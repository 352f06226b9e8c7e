#include "api/openai/chat_prompt.h"

#include <nlohmann/json.hpp>

namespace manta::api {
namespace {

using OrderedJson = nlohmann::ordered_json;

// simdjson has seen the text, so it parses; a discarded value would be refused by the template.
OrderedJson parse(const std::string& text) {
  return OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace

Problem render_chat(const LoopContext& context, const ChatRequest& request, std::string& prompt) {
  const auto& chat_template = context.model.chat_template;
  if (!chat_template) {
    return bad_value("messages",
                     "The model's tokenizer has no chat template; give one with --chat-template, or use "
                     "/v1/completions.");
  }
  const OrderedJson messages = parse(request.messages);
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
