#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "test_tokenizer.h"
#include "text/tokenizer.h"

namespace manta::text {
namespace {

using Json = nlohmann::ordered_json;
using Template = std::shared_ptr<const ChatTemplate>;

const TokenizerConfig kTokens{.bos_token = "<｜begin▁of▁sentence｜>", .eos_token = "<｜end▁of▁sentence｜>"};

Template parse(const std::string& source) {
  auto parsed = ChatTemplate::parse(source, kTokens);
  EXPECT_TRUE(parsed.ok()) << parsed.error().message;
  return parsed.ok() ? *parsed : nullptr;
}

Template tiny() {
  const auto config = load_tokenizer_config("models/tiny-v3");
  EXPECT_TRUE(config.ok());
  return parse(config->chat_template);
}

// A case as the golden files have it: {"messages", "tools"?, "kwargs"?, "add_generation_prompt", …}
Result<std::string> render(const ChatTemplate& chat, const Json& input) {
  const auto optional = [&](const char* name) { return input.contains(name) ? &input[name] : nullptr; };
  return chat.render({.messages = optional("messages"),
                      .tools = optional("tools"),
                      .documents = optional("documents"),
                      .kwargs = optional("kwargs"),
                      .add_generation_prompt = input.value("add_generation_prompt", true),
                      .continue_final_message = input.value("continue_final_message", false)});
}

std::vector<Json> read_cases(const std::string& path) {
  std::ifstream in(path);
  std::vector<Json> cases;
  for (std::string line; std::getline(in, line);) cases.push_back(Json::parse(line));
  return cases;
}

Json user(const std::string& text) {
  return {{"messages", {{{"role", "user"}, {"content", text}}}}};
}

TEST(ChatTemplate, GoldenConversationsAsTransformers) {
  const auto cases = read_cases("tests/golden/chat_cases.jsonl");
  ASSERT_EQ(cases.size(), 60u);
  const auto chat = tiny();
  const auto tokenizer = Tokenizer::load("models/tiny-v3");
  ASSERT_TRUE(tokenizer.ok());
  for (const auto& c : cases) {
    const auto text = render(*chat, c);
    ASSERT_TRUE(text.ok()) << text.error().message;
    EXPECT_EQ(*text, c["text"].get<std::string>());
    const auto ids = (*tokenizer)->encode(*text);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, c["ids"].get<std::vector<TokenId>>());
  }
}

// The texts were made by transformers with compare_chat_templates.py --write; the templates are read from the package.
TEST(ChatTemplate, DeepSeekTemplatesAsTransformers) {
  const auto cases = read_cases("tests/text/deepseek_chat_cases.jsonl");
  ASSERT_EQ(cases.size(), 96u);
  std::map<std::string, Template> templates{{"tiny-v3", tiny()}};
  for (const auto& c : cases) {
    const auto name = c["template"].get<std::string>();
    if (!templates.contains(name)) {
      const auto source = load_chat_template(MANTA_DEPS_DIR "/jinja/templates/" + name);
      ASSERT_TRUE(source.ok()) << source.error().message;
      templates[name] = parse(*source);
    }
    const auto text = render(*templates[name], c["input"]);
    ASSERT_TRUE(text.ok()) << name << ": " << text.error().message;
    EXPECT_EQ(*text, c["text"].get<std::string>()) << name;
  }
}

TEST(ChatTemplate, ArgumentsAsTextBecomeAnObjectWhereTheTemplateWantsOne) {
  const auto source = load_chat_template(MANTA_DEPS_DIR "/jinja/templates/deepseek-ai-DeepSeek-V3.1.jinja");
  ASSERT_TRUE(source.ok());
  const auto v31 = parse(*source);
  Json input = user("hi");
  input["messages"].push_back(Json::parse(R"({"role": "assistant", "content": "", "tool_calls": [
      {"type": "function", "function": {"name": "f", "arguments": "{\"b\":1.0,\"a\":[1,2]}"}}]})"));
  const auto text = render(*v31, input);
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_NE(text->find(R"(f<｜tool▁sep｜>{"b": 1.0, "a": [1, 2]}<｜tool▁call▁end｜>)"), std::string::npos) << *text;
  const auto verbatim = render(*tiny(), input);
  ASSERT_TRUE(verbatim.ok());
  EXPECT_NE(verbatim->find(R"({"b":1.0,"a":[1,2]})"), std::string::npos) << *verbatim;
  input["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{broken";
  const auto broken = render(*v31, input);
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find("messages[1].tool_calls[0].function.arguments"), std::string::npos);
}

TEST(ChatTemplate, WrongInputsAreErrors) {
  const auto chat = tiny();
  const auto expect_bad = [&](const Json& input) {
    const auto text = render(*chat, input);
    ASSERT_FALSE(text.ok()) << input;
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  };
  expect_bad(Json::object());
  expect_bad({{"messages", "text"}});
  expect_bad({{"messages", Json::array()}, {"tools", 3}});
  expect_bad({{"messages", Json::array()}, {"kwargs", Json::array()}});
  expect_bad({{"messages", {{{"role", "user"}, {"content", "a"}}}}, {"continue_final_message", true}});
  expect_bad({{"messages", {{{"role", "user"}, {"content", 5}}}}, {"tools", {1}}});
  Json deep = 0;
  for (int i = 0; i < 1000; ++i) {
    Json outer = Json::array();
    outer.push_back(std::move(deep));
    deep = std::move(outer);
  }
  expect_bad({{"messages", {{{"role", "user"}, {"content", deep}}}}});
  expect_bad({{"messages", {{{"role", "assistant"}, {"content", deep}}}},
              {"add_generation_prompt", false},
              {"continue_final_message", true}});
}

TEST(ChatTemplate, ContinuesTheLastMessage) {
  const auto continued = [](const std::string& source, const std::string& last) {
    Json input = user("q");
    input["messages"].push_back({{"role", "assistant"}, {"content", last}});
    input["add_generation_prompt"] = false;
    input["continue_final_message"] = true;
    return render(*parse(source), input);
  };
  const std::string plain = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
  const std::string trimming = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}";
  EXPECT_EQ(*continued(plain, "so far "), "[q][so far ");
  EXPECT_EQ(*continued(trimming, "so far "), "[q][so far");
  EXPECT_FALSE(continued("{{ messages[0].content }}", "so far").ok());
}

TEST(ChatTemplate, RaiseExceptionReachesTheClientAsItIs) {
  const auto text = render(*parse("{{ raise_exception('roles must alternate: ' ~ messages[0].role) }}"), user("a"));
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().message, "roles must alternate: user");
  EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
}

TEST(ChatTemplate, ARemainderByZeroIsAnErrorAsInPython) {
  EXPECT_EQ(*render(*parse("{{ 7 % 4 }}{{ messages[0].content | length % 2 }}"), user("a")), "31");
  const auto text = render(*parse("{% for i in range(10 % (1 - 1)) %}{{ i }}{% endfor %}"), user("a"));
  ASSERT_FALSE(text.ok());
  EXPECT_NE(text.error().message.find("integer modulo by zero"), std::string::npos) << text.error().message;
}

TEST(ChatTemplate, VariablesAreThoseOfTransformers) {
  EXPECT_EQ(*render(*parse("{{ bos_token }}|{{ tools is none }}|{{ documents is none }}|{{ pad_token is defined }}"),
                    user("a")),
            "<｜begin▁of▁sentence｜>|True|True|False");
  Json input = user("a");
  input["kwargs"] = {{"thinking", true}, {"bos_token", "B"}};
  EXPECT_EQ(*render(*parse("{{ thinking }}{{ bos_token }}"), input), "TrueB");
}

TEST(ChatTemplate, ThreadsRenderAtOnce) {
  const auto chat = tiny();
  const auto cases = read_cases("tests/golden/chat_cases.jsonl");
  std::vector<std::thread> threads;
  std::vector<int> num_wrong(4, 0);
  for (int& wrong : num_wrong) {
    threads.emplace_back([&] {
      for (const auto& c : cases) {
        const auto text = render(*chat, c);
        wrong += !text.ok() || *text != c["text"].get<std::string>();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, std::vector<int>(4, 0));
}

TEST(ChatTemplate, LoadsAFileOrTakesTheText) {
  EXPECT_EQ(*load_chat_template("{{ messages }}"), "{{ messages }}");
  const auto file = load_chat_template("models/tiny-v3/config.json");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->front(), '{');
  const auto missing = load_chat_template("no/such/file.jinja");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("no/such/file.jinja"), std::string::npos);
}

}  // namespace
}  // namespace manta::text
