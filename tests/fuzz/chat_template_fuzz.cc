// Any bytes as a chat template and its input. The first line is JSON: the request's {"messages", "tools", "documents",
// "kwargs"}; what follows is the template, or, when nothing follows, all of kTemplates are rendered.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_template.h"

namespace {

using manta::text::ChatTemplate;
using nlohmann::ordered_json;

// Between them, what DeepSeek's templates and their kin do with a conversation.
constexpr const char* kTemplates[] = {
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}",
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name ~ (c.function.arguments "
    "| tojson) }}"
    "{% endfor %}{% else %}{{ m.content.split('</think>')[-1] | trim }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text "
    "}}{% endfor %}"
    "{% endif %}{% endfor %}{% for t in tools or [] %}{{ t | tojson(indent=2, sort_keys=true) }}{% endfor %}",
    "{% set ns = namespace(x='') %}{% for k, v in (messages[0] or {}).items() %}{% set ns.x = ns.x ~ k ~ v %}{% endfor "
    "%}{{ ns.x }}"
    "{{ documents | length }}{{ thinking is defined and thinking }}{{ messages[-1].content[1:] | upper | replace('A', "
    "'b') }}",
};

void render(const ChatTemplate& chat, const ordered_json& input, bool continued) {
  const auto member = [&](const char* name) { return input.contains(name) ? &input[name] : nullptr; };
  const auto text = chat.render({.messages = member("messages"),
                                 .tools = member("tools"),
                                 .documents = member("documents"),
                                 .kwargs = member("kwargs"),
                                 .add_generation_prompt = !continued,
                                 .continue_final_message = continued});
  if (!text.ok() && text.error().message.empty()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* fixed = [] {
    auto* parsed = new std::vector<std::shared_ptr<const ChatTemplate>>();
    for (const char* source : kTemplates) {
      auto chat = ChatTemplate::parse(source, {.bos_token = "<s>", .eos_token = "</s>"});
      if (!chat.ok()) std::abort();
      parsed->push_back(*chat);
    }
    return parsed;
  }();
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t line_end = std::min(bytes.find('\n'), bytes.size());
  const auto input = ordered_json::parse(bytes.substr(0, line_end), nullptr, false);
  if (input.is_discarded() || !input.is_object()) return 0;
  if (line_end + 1 >= bytes.size()) {
    for (const auto& chat : *fixed) {
      render(*chat, input, false);
      render(*chat, input, true);
    }
    return 0;
  }
  const auto chat = ChatTemplate::parse(std::string(bytes.substr(line_end + 1)), {.bos_token = "<s>"});
  if (chat.ok()) render(**chat, input, false);
  return 0;
}
