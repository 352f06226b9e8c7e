#include "text/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "text/file.h"
#include "text/white_space.h"

namespace manta::text {

namespace {

using nlohmann::ordered_json;

Error bad(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

std::string_view strip(std::string_view text) {
  const size_t begin = skip_white_space(text, 0);
  return text.substr(begin, white_space_before(text, text.size(), begin) - begin);
}

// The member of a JSON object, null when it is not there (or json is no object).
const ordered_json* member(const ordered_json& json, const char* name) {
  if (!json.is_object()) return nullptr;
  const auto it = json.find(name);
  return it != json.end() ? &*it : nullptr;
}

ordered_json* member(ordered_json& json, const char* name) {
  return const_cast<ordered_json*>(member(std::as_const(json), name));
}

// Copies of JSON recurse, so what is copied must not be nested without bound.
bool is_deeper_than(const ordered_json& json, int max_depth) {
  if (!json.is_structured()) return false;
  return max_depth == 0 || std::any_of(json.begin(), json.end(),
                                       [&](const ordered_json& item) { return is_deeper_than(item, max_depth - 1); });
}

bool has_tool_calls(const ordered_json& messages) {
  for (const auto& message : messages) {
    const auto* calls = member(message, "tool_calls");
    if (calls != nullptr && calls->is_array() && !calls->empty()) return true;
  }
  return false;
}

Status parse_arguments(ordered_json& message, size_t message_idx) {
  ordered_json* calls = member(message, "tool_calls");
  if (calls == nullptr || !calls->is_array()) return {};
  for (size_t i = 0; i < calls->size(); ++i) {
    ordered_json* function = member((*calls)[i], "function");
    ordered_json* arguments = function != nullptr ? member(*function, "arguments") : nullptr;
    if (arguments == nullptr || !arguments->is_string()) continue;
    auto parsed = ordered_json::parse(arguments->get_ref<const std::string&>(), nullptr, false);
    if (parsed.is_discarded()) {
      return bad(fmt::format("messages[{}].tool_calls[{}].function.arguments is not JSON", message_idx, i));
    }
    *arguments = std::move(parsed);
  }
  return {};
}

constexpr std::string_view kOpenEnd = "CONTINUE_FINAL_MESSAGE_TAG ";  // transformers' own marker

// Marks the end of the last message's text and gives the text without the mark.
Result<std::string> mark_last_text(ordered_json& messages) {
  ordered_json* content = messages.empty() ? nullptr : member(messages.back(), "content");
  if (content != nullptr && content->is_array()) {
    ordered_json* text = nullptr;
    for (auto& part : *content) {
      if (ordered_json* part_text = member(part, "text"); part_text != nullptr) text = part_text;
    }
    content = text;
  }
  if (content == nullptr || !content->is_string()) {
    return bad("continue_final_message: the last message has no text to continue");
  }
  const auto text = content->get<std::string>();
  *content = text + std::string(kOpenEnd);
  return text;
}

}  // namespace

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::parse(const std::string& source,
                                                                const TokenizerConfig& tokens) {
  std::shared_ptr<ChatTemplate> result(new ChatTemplate);
  MANTA_ASSIGN(result->program_, JinjaProgram::parse(source));
  result->source_ = source;
  for (const auto& [name, token] : {std::pair("bos_token", &tokens.bos_token),
                                    {"eos_token", &tokens.eos_token},
                                    {"pad_token", &tokens.pad_token}}) {
    if (!token->empty()) result->special_tokens_.emplace_back(name, *token);
  }
  result->wants_object_arguments_ = result->probe_object_arguments();
  result->wants_null_content_ = result->probe_null_content();
  return std::shared_ptr<const ChatTemplate>(std::move(result));
}

namespace {

// A conversation with one tool call, as clients send it back.
ordered_json call_conversation(const ordered_json& content, const ordered_json& arguments) {
  return {{{"role", "user"}, {"content", "a"}},
          {{"role", "assistant"},
           {"content", content},
           {"tool_calls",
            {{{"id", "call_0"}, {"type", "function"}, {"function", {{"name", "f_key"}, {"arguments", arguments}}}}}}},
          {{"role", "tool"}, {"tool_call_id", "call_0"}, {"content", "b"}}};
}

}  // namespace

// A template wants objects when text comes out changed (tojson quotes it again, items() fails on it) and an object does
// not.
bool ChatTemplate::probe_object_arguments() const {
  const auto renders_as_json = [&](const ordered_json& arguments) {
    const auto text = render_messages(call_conversation("", arguments), {.add_generation_prompt = false});
    return text.ok() && text->find(R"("key)") != std::string::npos && text->find(R"(\"key)") == std::string::npos;
  };
  if (source_.find("arguments") == std::string::npos) return false;
  return !renders_as_json(R"({"key": "value"})") && renders_as_json({{"key", "value"}});
}

bool ChatTemplate::probe_null_content() const {
  const auto shows_call = [&](const ordered_json& content) {
    const ordered_json arguments =
        wants_object_arguments_ ? ordered_json{{"key", "value"}} : ordered_json(R"({"key": "value"})");
    const auto text = render_messages(call_conversation(content, arguments), {.add_generation_prompt = false});
    return text.ok() && text->find("f_key") != std::string::npos;
  };
  return !shows_call("") && shows_call(nullptr);
}

Result<std::string> ChatTemplate::render(const ChatInput& input) const {
  if (input.messages == nullptr || !input.messages->is_array()) return bad("messages must be a list");
  if (input.tools != nullptr && !input.tools->is_array()) return bad("tools must be a list");
  if (input.kwargs != nullptr && !input.kwargs->is_object()) return bad("chat_template_kwargs must be an object");
  if (input.continue_final_message && input.add_generation_prompt) {
    return bad("add_generation_prompt and continue_final_message cannot both be true");
  }
  const bool convert = wants_object_arguments_ && has_tool_calls(*input.messages);
  if (!convert && !input.continue_final_message) return render_messages(*input.messages, input);
  if (is_deeper_than(*input.messages, JinjaProgram::kMaxJsonDepth)) return bad("messages are nested too deeply");
  ordered_json messages = *input.messages;
  for (size_t i = 0; convert && i < messages.size(); ++i) MANTA_TRY(parse_arguments(messages[i], i));
  return input.continue_final_message ? render_open(std::move(messages), input) : render_messages(messages, input);
}

Result<std::string> ChatTemplate::render_open(ordered_json messages, const ChatInput& input) const {
  MANTA_ASSIGN(const std::string last_text, mark_last_text(messages));
  MANTA_ASSIGN(std::string text, render_messages(messages, input));
  const size_t mark = text.rfind(strip(kOpenEnd));
  if (mark == std::string::npos || text.find(strip(last_text)) == std::string::npos) {
    return bad("continue_final_message: the chat template leaves the last message out or changes it");
  }
  // A template that trims its messages trims the mark's space as well, and then also the text before the mark.
  const bool is_trimmed = std::string_view(text).substr(mark, kOpenEnd.size()) != kOpenEnd;
  text.resize(is_trimmed ? white_space_before(text, mark, 0) : mark);
  return text;
}

Result<std::string> ChatTemplate::render_messages(const ordered_json& messages, const ChatInput& input) const {
  const ordered_json none, add_generation_prompt = input.add_generation_prompt;
  std::vector<JinjaProgram::Variable> variables{{"messages", &messages},
                                                {"tools", input.tools != nullptr ? input.tools : &none},
                                                {"documents", input.documents != nullptr ? input.documents : &none},
                                                {"add_generation_prompt", &add_generation_prompt}};
  std::vector<ordered_json> tokens(special_tokens_.size());  // never grows: variables point into it
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = special_tokens_[i].second;
    variables.push_back({special_tokens_[i].first, &tokens[i]});
  }
  if (input.kwargs != nullptr) {
    for (const auto& [name, value] : input.kwargs->items()) variables.push_back({name, &value});
  }
  return program_.render(variables);
}

Result<std::string> load_chat_template(const std::string& file_or_text) {
  auto file = file_or_text.size() < 4096 && file_or_text.find('\n') == std::string::npos
                  ? read_file(file_or_text)
                  : Result<std::string>(error(ErrorCode::kNotFound, "not a file name"));
  if (file.ok()) return file;
  if (file_or_text.find_first_of("{}\n") != std::string::npos) return file_or_text;
  return bad(fmt::format("the chat template '{}' looks like a file name, but: {}", file_or_text, file.error().message));
}

}  // namespace manta::text
