#include <limits>

#include "api/openai/json_writer.h"
#include "api/openai/request_fields.h"

namespace manta::api {
namespace {

using R = ChatRequest;
constexpr size_t kMaxMessages = 65536;
constexpr size_t kMaxTools = 1024;

std::string_view string_or(simdjson::dom::object object, const char* key, std::string_view otherwise) {
  std::string_view text;
  return object[key].get(text) == simdjson::SUCCESS ? text : otherwise;
}

// The parts' texts, one a line, as vLLM gives them to templates that take a string.
Problem join_parts(simdjson::dom::array parts, std::string_view name, std::string& out) {
  bool first = true;
  for (const Json part : parts) {
    std::string_view type = "text", text;
    simdjson::dom::object object;
    if (part.is_string()) {
      text = part.get_string().value_unsafe();
    } else {
      if (auto problem = read_object(part, name, object)) return problem;
      type = string_or(object, "type", "text");
      const char* key = type == "refusal" ? "refusal" : "text";
      if (type != "text" && type != "refusal") {
        return bad_value(
            name, fmt::format("{}: parts of type \"{}\" are not served: the model takes text only.", name, type));
      }
      if (object[key].get(text) != simdjson::SUCCESS) {
        return bad_shape(name, fmt::format("{}: a part of type {} needs a string {}", name, type, key));
      }
    }
    if (!std::exchange(first, false)) out += '\n';
    out += text;
  }
  return {};
}

Problem write_content(Json content, std::string_view name, JsonWriter& writer) {
  simdjson::dom::array parts;
  if (content.is_string() || content.is_null()) {
    writer.raw(json_text(content));
    return {};
  }
  if (content.get(parts) != simdjson::SUCCESS) {
    return bad_shape(name,
                     fmt::format("{}: input should be a string or an array of parts, got {}", name, kind_of(content)));
  }
  std::string text;
  if (auto problem = join_parts(parts, name, text)) return problem;
  writer.string(text);
  return {};
}

Problem write_message(Json message, size_t idx, JsonWriter& writer) {
  const std::string name = fmt::format("messages.{}", idx);
  simdjson::dom::object object;
  if (auto problem = read_object(message, name, object)) return problem;
  std::string_view role;
  if (object["role"].get(role) != simdjson::SUCCESS) {
    return bad_shape(name + ".role", fmt::format("{}.role: field required", name));
  }
  writer.begin_object();
  bool has_content = false;
  for (const auto& [key, value] : object) {
    std::string quoted;
    append_json_string(quoted, key);
    writer.key(std::string_view(quoted).substr(1, quoted.size() - 2));
    if (key == "role") {
      // OpenAI's newer name for system; the templates know the older one only, and would drop the message.
      writer.string(role == "developer" ? "system" : role);
    } else if (key == "content") {
      has_content = true;
      if (auto problem = write_content(value, name + ".content", writer)) return problem;
    } else {
      writer.raw(json_text(value));
    }
  }
  if (!has_content) writer.key("content").null();
  writer.end_object();
  return {};
}

Problem read_messages(Json value, R& r) {
  simdjson::dom::array messages;
  if (value.get(messages) != simdjson::SUCCESS) {
    return bad_shape("messages", fmt::format("messages: input should be an array, got {}", kind_of(value)));
  }
  if (messages.size() == 0 || messages.size() > kMaxMessages) {
    return bad_value("messages",
                     fmt::format("messages must hold 1 to {} messages, got {}.", kMaxMessages, messages.size()));
  }
  r.messages.clear();
  JsonWriter writer(r.messages);
  writer.begin_array();
  size_t idx = 0;
  for (const Json message : messages) {
    if (auto problem = write_message(message, idx++, writer)) return problem;
  }
  writer.end_array();
  return {};
}

Problem check_tool(Json tool, size_t idx) {
  const std::string name = fmt::format("tools.{}", idx);
  simdjson::dom::object object, function;
  if (auto problem = read_object(tool, name, object)) return problem;
  std::string_view function_name;
  const std::string_view type = string_or(object, "type", "function");
  if (type != "function") {
    return bad_value(name + ".type", fmt::format("{}.type must be \"function\", got \"{}\".", name, type));
  }
  if (object["function"].get(function) != simdjson::SUCCESS ||
      function["name"].get(function_name) != simdjson::SUCCESS || function_name.empty()) {
    return bad_shape(name, fmt::format("{}: function.name: field required", name));
  }
  return {};
}

Problem read_tools(Json value, R& r) {
  simdjson::dom::array tools;
  if (value.get(tools) != simdjson::SUCCESS) {
    return bad_shape("tools", fmt::format("tools: input should be an array, got {}", kind_of(value)));
  }
  if (tools.size() > kMaxTools) {
    return bad_value("tools", fmt::format("tools holds {} tools, at most {}.", tools.size(), kMaxTools));
  }
  size_t idx = 0;
  for (const Json tool : tools) {
    if (auto problem = check_tool(tool, idx++)) return problem;
  }
  r.tools = tools.size() == 0 ? std::string() : json_text(value);
  return {};
}

Problem read_tool_choice(Json value, R& r) {
  std::string_view text;
  if (value.get(text) == simdjson::SUCCESS) {
    if (text != "none" && text != "auto" && text != "required") {
      return bad_value("tool_choice",
                       fmt::format("tool_choice must be none, auto, required or a named tool, got \"{}\".", text));
    }
    r.tool_choice = text == "none" ? ToolChoice::kNone : text == "auto" ? ToolChoice::kAuto : ToolChoice::kRequired;
    return {};
  }
  simdjson::dom::object object, function;
  if (auto problem = read_object(value, "tool_choice", object)) return problem;
  if (object["function"].get(function) != simdjson::SUCCESS || function["name"].get(text) != simdjson::SUCCESS) {
    return bad_shape("tool_choice", "tool_choice: function.name: field required");
  }
  r.tool_choice = ToolChoice::kNamed;
  r.tool_name = text;
  return {};
}

Problem read_template_kwargs(Json value, R& r) {
  simdjson::dom::object object;
  if (auto problem = read_object(value, "chat_template_kwargs", object)) return problem;
  for (const auto& [key, item] : object) r.template_kwargs.emplace_back(key, json_text(item));
  return {};
}

Problem refuse_echo(Json value, R&) {
  bool wanted = false;
  if (auto problem = read_bool(value, "echo", wanted)) return problem;
  if (wanted) return not_implemented("echo", "echo is served by /v1/completions only.");
  return {};
}

Problem refuse_functions(Json, R&) {
  return bad_value("functions", "functions and function_call are not served; use tools and tool_choice.");
}

constexpr Field<R> kFields[] = {
    {"messages", read_messages},
    {"tools", read_tools},
    {"tool_choice", read_tool_choice},
    {"parallel_tool_calls", [](Json v, R& r) { return read_bool(v, "parallel_tool_calls", r.parallel_tool_calls); }},
    {"functions", refuse_functions},
    {"function_call", refuse_functions},
    {"logprobs", [](Json v, R& r) { return read_bool(v, "logprobs", r.want_logprobs); }},
    {"top_logprobs",
     [](Json v, R& r) {
       return read_int(v, "top_logprobs", {R::kWholeVocabulary, std::numeric_limits<int32_t>::max()}, r.top_logprobs);
     }},
    {"chat_template", [](Json v, R& r) { return read_string(v, "chat_template", r.chat_template); }},
    {"chat_template_kwargs", read_template_kwargs},
    {"documents",
     [](Json v, R& r) -> Problem {
       if (!v.is_array())
         return bad_shape("documents", fmt::format("documents: input should be an array, got {}", kind_of(v)));
       r.documents = json_text(v);
       return {};
     }},
    {"reasoning_effort",
     [](Json v, R& r) -> Problem {
       r.template_kwargs.emplace_back("reasoning_effort", json_text(v));
       return {};
     }},
    {"add_generation_prompt",
     [](Json v, R& r) { return read_bool(v, "add_generation_prompt", r.add_generation_prompt); }},
    {"continue_final_message",
     [](Json v, R& r) { return read_bool(v, "continue_final_message", r.continue_final_message); }},
    {"echo", refuse_echo},
    {"include_reasoning", [](Json v, R& r) { return read_bool(v, "include_reasoning", r.include_reasoning); }},
};

}  // namespace

std::span<const Field<ChatRequest>> chat_fields() {
  return kFields;
}

}  // namespace manta::api
