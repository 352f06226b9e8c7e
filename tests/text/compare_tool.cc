// The room as a filter, for the compare_*.py scripts: JSON lines in, JSON lines out.
//   manta_text_compare encode TOKENIZER   "text"  -> [ids]
//   manta_text_compare decode TOKENIZER   [ids]   -> "text"
//   manta_text_compare render             {"template", "tokens", "input"} -> {"text"} or {"error"}
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace {

using manta::text::ChatTemplate;
using manta::text::Tokenizer;
using nlohmann::ordered_json;

int fail(const std::string& message) {
  std::cerr << "manta_text_compare: " << message << "\n";
  return 1;
}

ordered_json render(const ordered_json& line) {
  static std::map<std::string, std::shared_ptr<const ChatTemplate>> templates;
  const auto source = line["template"].get<std::string>();
  if (!templates.contains(source)) {
    const auto parsed = ChatTemplate::parse(source, {.bos_token = line["tokens"].value("bos_token", ""),
                                                     .eos_token = line["tokens"].value("eos_token", "")});
    if (!parsed.ok()) return {{"error", parsed.error().message}};
    templates[source] = *parsed;
  }
  const auto& input = line["input"];
  const auto list = [&](const char* name) { return input.contains(name) ? &input[name] : nullptr; };
  const auto text = templates[source]->render({.messages = list("messages"),
                                               .tools = list("tools"),
                                               .documents = list("documents"),
                                               .kwargs = list("kwargs"),
                                               .add_generation_prompt = input.value("add_generation_prompt", false),
                                               .continue_final_message = input.value("continue_final_message", false)});
  return text.ok() ? ordered_json{{"text", *text}} : ordered_json{{"error", text.error().message}};
}

ordered_json tokenize(const Tokenizer& tokenizer, const ordered_json& line) {
  if (line.is_array()) return tokenizer.decode(line.get<std::vector<manta::TokenId>>(), false);
  const auto ids = tokenizer.encode(line.get<std::string>());
  return ids.ok() ? ordered_json(*ids) : ordered_json{{"error", ids.error().message}};
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode != "render" && !((mode == "encode" || mode == "decode") && argc == 3)) {
    return fail("usage: manta_text_compare encode|decode TOKENIZER, or render");
  }
  std::shared_ptr<const Tokenizer> tokenizer;
  if (mode != "render") {
    const auto loaded = Tokenizer::load(argv[2]);
    if (!loaded.ok()) return fail(loaded.error().message);
    tokenizer = *loaded;
  }
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    const auto json = ordered_json::parse(line);
    std::cout << (mode == "render" ? render(json) : tokenize(*tokenizer, json)).dump() << "\n";
  }
  return 0;
}
