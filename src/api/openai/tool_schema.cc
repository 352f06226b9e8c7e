#include "api/openai/tool_schema.h"

#include <nlohmann/json.hpp>

namespace manta::api {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson parameters_of(const OrderedJson& function) {
  const auto found = function.find("parameters");
  if (found != function.end() && found->is_object()) return *found;
  return OrderedJson{{"type", "object"}, {"properties", OrderedJson::object()}};
}

// {"name": …, "parameters": …} of one tool. Definitions move to the root, where "#/$defs/…" points.
OrderedJson call_schema(const OrderedJson& function, OrderedJson& defs) {
  OrderedJson parameters = parameters_of(function);
  if (const auto found = parameters.find("$defs"); found != parameters.end()) {
    if (found->is_object()) defs.update(*found);
    parameters.erase("$defs");
  }
  return OrderedJson{
      {"type", "object"},
      {"properties", {{"name", {{"type", "string"}, {"enum", {function["name"]}}}}, {"parameters", parameters}}},
      {"required", {"name", "parameters"}},
      {"additionalProperties", false}};
}

std::string required_schema(const OrderedJson& tools, bool parallel) {
  OrderedJson defs = OrderedJson::object();
  OrderedJson calls = OrderedJson::array();
  for (const auto& tool : tools) calls.push_back(call_schema(tool["function"], defs));
  OrderedJson schema{{"type", "array"}, {"minItems", 1}, {"items", {{"anyOf", calls}}}};
  if (!parallel) schema["maxItems"] = 1;
  if (!defs.empty()) schema["$defs"] = defs;
  return schema.dump();
}

const OrderedJson* find_function(const OrderedJson& tools, const std::string& name) {
  for (const auto& tool : tools) {
    if (tool["function"]["name"] == name) return &tool["function"];
  }
  return nullptr;
}

}  // namespace

Problem constrain_to_tools(ChatRequest& request) {
  const ToolChoice choice = request.tool_choice.value_or(ToolChoice::kNone);
  if (choice != ToolChoice::kRequired && choice != ToolChoice::kNamed) return {};
  if (request.grammar.kind != sample::GrammarKind::kNone) {
    return bad_value("tool_choice",
                     "tool_choice required or a named tool constrains the whole answer, and so does response_format or "
                     "structured_outputs: give one of them.");
  }
  const OrderedJson tools = OrderedJson::parse(request.tools, nullptr, /*allow_exceptions=*/false);
  request.grammar.kind = sample::GrammarKind::kJsonSchema;
  if (choice == ToolChoice::kRequired) {
    request.grammar.text = required_schema(tools, request.parallel_tool_calls);
    return {};
  }
  const OrderedJson* function = find_function(tools, request.tool_name);
  if (!function) {
    return bad_value("tool_choice",
                     fmt::format("The tool `{}` of tool_choice is not among `tools`.", request.tool_name));
  }
  request.grammar.text = parameters_of(*function).dump();
  return {};
}

void RequiredCallsParser::push(std::string_view text, std::vector<text::ToolCallDelta>& out) {
  for (const char c : text) {
    if (depth_ == 0 && c != '{') continue;  // the array's brackets, commas and spaces
    object_ += c;
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
      continue;
    }
    if (c == '"') in_string_ = true;
    if (c == '{') ++depth_;
    if (c != '}' || --depth_ > 0) continue;
    const OrderedJson call = OrderedJson::parse(object_, nullptr, /*allow_exceptions=*/false);
    object_.clear();
    if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) continue;
    const OrderedJson arguments = call.value("parameters", OrderedJson::object());
    out.push_back({.index = num_calls_++,
                   .name = call["name"].get<std::string>(),
                   .arguments = arguments.dump(-1, ' ', false, OrderedJson::error_handler_t::replace)});
  }
}

}  // namespace manta::api
