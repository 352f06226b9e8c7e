#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "api/openai/chat_parts.h"
#include "test_server.h"
#include "text/tokenizer.h"

namespace manta::api::testing {
namespace {

using nlohmann::json;

std::vector<TokenId> ids_of(const std::string& text) {
  static const auto tokenizer = *text::Tokenizer::load("models/tiny-v3");
  return *tokenizer->encode(text);
}

// A step per token, then the end token.
std::vector<RequestOutput> steps(const std::string& text) {
  std::vector<RequestOutput> outputs;
  for (const TokenId id : ids_of(text)) outputs.push_back(tokens({id}));
  outputs.push_back(finished(FinishReason::kStop, {1}, 1));
  return outputs;
}

const std::string kHello = R"("messages":[{"role":"user","content":"Hello"}])";
const std::string kTools =
    R"("tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}])";
const std::string kCallText =
    "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": "
    "\"Rome\"}\n"
    "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

void enable_tools(Settings& s) {
  s.enable_auto_tool_choice = true;
  s.tool_call_parser = "deepseek_v3";
}

json post(TestServer& server, const std::string& body, int status = 200) {
  auto client = server.client();
  const auto response = client.post("/v1/chat/completions", body);
  if (!response) {
    ADD_FAILURE() << "no response";
    return {};
  }
  EXPECT_EQ(response->status, status) << response->body;
  return json::parse(response->body, nullptr, false);
}

// The choices' deltas of a stream, put together.
json merged_delta(const std::vector<std::string>& events) {
  json merged = {{"content", ""}, {"reasoning", ""}, {"calls", json::array()}, {"finish_reason", nullptr}};
  for (const auto& event : events) {
    if (event == "[DONE]") break;
    const json parsed = json::parse(event);
    for (const json& choice : parsed["choices"]) {
      const json& delta = choice["delta"];
      for (const char* key : {"content", "reasoning"}) {
        if (delta.contains(key)) merged[key] = merged[key].get<std::string>() + delta[key].get<std::string>();
      }
      const json calls = delta.value("tool_calls", json::array());
      for (const json& call : calls) {
        const size_t index = call["index"];
        while (merged["calls"].size() <= index) merged["calls"].push_back({{"name", ""}, {"arguments", ""}});
        json& to = merged["calls"][index];
        to["name"] = to["name"].get<std::string>() + call["function"].value("name", "");
        to["arguments"] = to["arguments"].get<std::string>() + call["function"].value("arguments", "");
      }
      if (!choice["finish_reason"].is_null()) merged["finish_reason"] = choice["finish_reason"];
    }
  }
  return merged;
}

TEST(Chat, RendersTheTemplateAndAnswers) {
  TestServer server;
  server.engine.set_script(steps("Hi there"));
  const json body = post(server, "{" + kHello + "}");
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "Hi there");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  const Submit submit = server.engine.wait_submit(0);
  EXPECT_EQ(submit.tokens, (std::vector<TokenId>{0, 4084, 1458, 4085}));  // tests/golden/chat_cases.jsonl, line 1
  EXPECT_EQ(submit.sampling.max_tokens, 4096 - 4);                        // what the context has left
}

TEST(Chat, FirstEventHasTheRoleAndLastTheFinishReason) {
  TestServer server;
  server.engine.set_script(steps("Hi there"));
  auto client = server.client();
  const auto events = client.post_stream("/v1/chat/completions", "{" + kHello + R"(,"stream":true})");
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(json::parse(events.front())["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(json::parse(events.front())["object"], "chat.completion.chunk");
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(json::parse(events[events.size() - 2])["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(merged_delta(events)["content"], "Hi there");
}

TEST(Chat, ContentPartsAreJoinedAndImagesRefused) {
  TestServer server;
  server.engine.set_script(steps("ok"));
  post(server, R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]})");
  const auto joined = server.engine.wait_submit(0).tokens;
  post(server, R"({"messages":[{"role":"user","content":"a\nb"}]})");
  EXPECT_EQ(joined, server.engine.wait_submit(1).tokens);
  const json refused =
      post(server, R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]})", 400);
  EXPECT_EQ(refused["error"]["param"], "messages.0.content");
}

TEST(Chat, ToolCallIsParsedWholeAndStreamed) {
  TestServer server(enable_tools);
  server.engine.set_script(steps(kCallText));
  const json message = post(server, "{" + kHello + "," + kTools + "}")["choices"][0];
  EXPECT_EQ(message["finish_reason"], "tool_calls");
  EXPECT_EQ(message["message"]["content"], "Let me see.");
  ASSERT_EQ(message["message"]["tool_calls"].size(), 1u);
  EXPECT_EQ(message["message"]["tool_calls"][0]["function"]["name"], "weather");
  EXPECT_EQ(json::parse(message["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>()),
            (json{{"city", "Rome"}}));
  auto client = server.client();
  const json streamed =
      merged_delta(client.post_stream("/v1/chat/completions", "{" + kHello + "," + kTools + R"(,"stream":true})"));
  EXPECT_EQ(streamed["content"], "Let me see.");
  EXPECT_EQ(streamed["calls"][0]["name"], "weather");
  EXPECT_EQ(json::parse(streamed["calls"][0]["arguments"].get<std::string>()), (json{{"city", "Rome"}}));
  EXPECT_EQ(streamed["finish_reason"], "tool_calls");
}

TEST(Chat, RequiredAndNamedToolsAreConstrainedByGrammar) {
  TestServer server;
  server.engine.set_script(steps(R"([{"name": "weather", "parameters": {"city": "a}b"}}])"));
  const json required = post(server, "{" + kHello + "," + kTools + R"(,"tool_choice":"required"})")["choices"][0];
  EXPECT_EQ(required["finish_reason"], "tool_calls");
  EXPECT_EQ(required["message"]["tool_calls"][0]["function"]["arguments"], R"({"city":"a}b"})");
  EXPECT_EQ(server.engine.wait_submit(0).sampling.grammar.kind, sample::GrammarKind::kJsonSchema);
  server.engine.set_script(steps(R"({"city":"Rome"})"));
  const std::string named = R"(,"tool_choice":{"type":"function","function":{"name":"weather"}}})";
  const json chosen = post(server, "{" + kHello + "," + kTools + named)["choices"][0];
  EXPECT_EQ(chosen["message"]["tool_calls"][0]["function"]["arguments"], R"({"city":"Rome"})");
  EXPECT_EQ(chosen["finish_reason"], "stop");
  const auto grammar = json::parse(server.engine.wait_submit(1).sampling.grammar.text);
  EXPECT_EQ(grammar["properties"]["city"]["type"], "string");
}

TEST(Chat, ToolChoiceRules) {
  TestServer server;
  post(server, "{" + kHello + "," + kTools + "}", 400);  // auto, and no parser is set
  post(server, "{" + kHello + R"(,"tool_choice":"required"})", 400);
  post(server, "{" + kHello + "," + kTools + R"(,"tool_choice":{"function":{"name":"other"}}})", 400);
  server.engine.set_script(steps("ok"));
  post(server, "{" + kHello + "," + kTools + R"(,"tool_choice":"none"})");
}

// The embedded model has no <think> token, so no server here can have the parser.
TEST(Chat, ReasoningIsToldFromContentInPieces) {
  const PartsOptions options{.reasoning_parser = "deepseek_r1"};
  ChatParts parts(options);
  std::string reasoning, content;
  for (const char* piece : {"I th", "ink.</th", "ink>Ans", "wer"}) {
    const auto delta = parts.push(piece, /*is_last=*/false);
    reasoning += delta.reasoning;
    content += delta.content;
  }
  content += parts.push("", /*is_last=*/true).content;
  EXPECT_EQ(reasoning, "I think.");
  EXPECT_EQ(content, "Answer");
}

TEST(Chat, ReasoningCanBeLeftOut) {
  const PartsOptions options{.reasoning_parser = "deepseek_r1", .include_reasoning = false};
  ChatParts parts(options);
  const auto delta = parts.push("I think.</think>Answer", /*is_last=*/true);
  EXPECT_EQ(delta.reasoning, "");
  EXPECT_EQ(delta.content, "Answer");
}

// The embedded model's tokenizer with two of its unused tokens turned into the markers of reasoning.
class ReasoningTokenizer {
 public:
  ReasoningTokenizer() {
    std::filesystem::create_directories(folder);
    std::ifstream in("models/tiny-v3/tokenizer.json");
    std::string json{std::istreambuf_iterator<char>(in), {}};
    for (const auto& [from, to] :
         {std::pair("<｜place▁holder▁no▁0｜>", "<think>"), {"<｜place▁holder▁no▁1｜>", "</think>"}}) {
      for (size_t at = 0; (at = json.find(from, at)) != std::string::npos;) json.replace(at, std::strlen(from), to);
    }
    std::ofstream(folder + "/tokenizer.json") << json;
    std::filesystem::copy("models/tiny-v3/tokenizer_config.json", folder + "/tokenizer_config.json");
  }
  ~ReasoningTokenizer() { std::filesystem::remove_all(folder); }
  const std::string folder = ::testing::TempDir() + "manta_reasoning_" + std::to_string(::getpid());
};
constexpr TokenId kThink = 4064, kEndThink = 4065;
const std::string kChoice = R"(,"structured_outputs":{"choice":["yes","no"]})";

TEST(Chat, AGrammarHoldsBehindTheReasoning) {
  const ReasoningTokenizer tokenizer;
  TestServer server([&](Settings& s) {
    s.tokenizer = tokenizer.folder;
    s.reasoning_parser = "deepseek_r1";
  });
  std::vector<RequestOutput> thoughts;
  for (const TokenId id : ids_of("I think.")) thoughts.push_back(tokens({id}));
  thoughts.push_back(tokens({kEndThink}));
  for (auto& output : steps("yes")) thoughts.push_back(std::move(output));
  server.engine.set_script(thoughts);
  const json message = post(server, "{" + kHello + kChoice + "}")["choices"][0]["message"];
  EXPECT_EQ(message["reasoning"], "I think.");
  EXPECT_EQ(message["content"], "yes");
  EXPECT_EQ(server.engine.wait_submit(0).sampling.grammar.after_token, kEndThink);

  // A named tool's call begins with the arguments and not with the first thought.
  const std::string named = R"(,"tool_choice":{"type":"function","function":{"name":"weather"}},"stream":true})";
  auto client = server.client();
  const auto events = client.post_stream("/v1/chat/completions", "{" + kHello + "," + kTools + named);
  const json streamed = merged_delta(events);
  EXPECT_EQ(streamed["reasoning"], "I think.");
  EXPECT_EQ(streamed["calls"][0]["name"], "weather");
  EXPECT_EQ(streamed["calls"][0]["arguments"], "yes");
  EXPECT_FALSE(json::parse(events[1])["choices"][0]["delta"].contains("tool_calls"));
}

TEST(Chat, APromptThatHasEndedItsReasoningLeavesContentOnly) {
  const ReasoningTokenizer tokenizer;
  TestServer server([&](Settings& s) {
    s.tokenizer = tokenizer.folder;
    s.reasoning_parser = "deepseek_r1";
    s.chat_template = "{{ messages[0].content }}{% if add_generation_prompt %}<think></think>{% endif %}";
  });
  server.engine.set_script(steps("yes"));
  const json message = post(server, "{" + kHello + kChoice + "}")["choices"][0]["message"];
  EXPECT_EQ(message["content"], "yes");
  EXPECT_TRUE(message["reasoning"].is_null());
  const Submit submit = server.engine.wait_submit(0);
  EXPECT_EQ(submit.tokens.back(), kEndThink);
  EXPECT_EQ(submit.sampling.grammar.after_token, -1);
}

TEST(Chat, MissingContentIsAnEmptyTextUnlessTheTemplateTellsCallsByIt) {
  const std::string messages =
      R"({"messages":[{"role":"user","content":null},{"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"user"}]})";
  const auto prompt = [&](const std::string& chat_template) {
    TestServer server([&](Settings& s) { s.chat_template = chat_template; });
    server.engine.set_script(steps("ok"));
    post(server, messages);
    return (*text::Tokenizer::load("models/tiny-v3"))->decode(server.engine.wait_submit(0).tokens, false);
  };
  EXPECT_EQ(prompt("{% for m in messages %}[{{ m.content }}]{% endfor %}"), "[][][]");
  EXPECT_EQ(prompt("{% for m in messages %}[{% if m.content is none %}{{ m.tool_calls[0].function.name }}"
                   "{% else %}{{ m.content }}{% endif %}]{% endfor %}"),
            "[][f][]");
}

std::string prompt_of(TestServer& server, const std::string& body) {
  const size_t index = server.engine.num_submits();
  post(server, body);
  return (*text::Tokenizer::load("models/tiny-v3"))->decode(server.engine.wait_submit(index).tokens, false);
}

TEST(Chat, ATrustedRequestBringsItsOwnTemplate) {
  const std::string own =
      R"({"messages":[{"role":"user","content":"x"}],"chat_template":"<{{ messages[0].content }}>"})";
  TestServer strict;
  EXPECT_EQ(post(strict, own, 400)["error"]["param"], "chat_template");
  TestServer trusting([](Settings& s) { s.trust_request_chat_template = true; });
  trusting.engine.set_script(steps("ok"));
  EXPECT_EQ(prompt_of(trusting, own), "<x>");
  // A file's name is a text like any other: requests read no files.
  EXPECT_EQ(prompt_of(trusting,
                      R"({"messages":[{"role":"user","content":"x"}],"chat_template":"models/tiny-v3/config.json"})"),
            "models/tiny-v3/config.json");
  const json broken = post(trusting, R"({"messages":[{"role":"user","content":"x"}],"chat_template":"{% if %}"})", 400);
  EXPECT_EQ(broken["error"]["param"], "chat_template");
}

TEST(Chat, TheServersTemplateVariablesGiveWayToTheRequests) {
  TestServer server([](Settings& s) {
    s.chat_template = "{{ a }}{{ b }}";
    s.default_chat_template_kwargs.text = R"({"a":"one","b":"two"})";
  });
  server.engine.set_script(steps("ok"));
  EXPECT_EQ(prompt_of(server, "{" + kHello + "}"), "onetwo");
  EXPECT_EQ(prompt_of(server, "{" + kHello + R"(,"chat_template_kwargs":{"b":"three"}})"), "onethree");
}

TEST(Chat, ToolsThatMustNotBeUsedCanBeLeftOutOfThePrompt) {
  const std::string body = "{" + kHello + "," + kTools + R"(,"tool_choice":"none"})";
  for (const bool exclude : {false, true}) {
    TestServer server([&](Settings& s) {
      s.chat_template = "{% if tools %}{{ tools | length }}{% else %}no{% endif %} tools";
      s.exclude_tools_when_tool_choice_none = exclude;
    });
    server.engine.set_script(steps("ok"));
    EXPECT_EQ(prompt_of(server, body), exclude ? "no tools" : "1 tools");
  }
}

TEST(Chat, ServerWideRulesOfGrammars) {
  const ReasoningTokenizer tokenizer;
  TestServer server([&](Settings& s) {
    s.tokenizer = tokenizer.folder;
    s.reasoning_parser = "deepseek_r1";
    s.structured_outputs_config.enable_in_reasoning = true;
    s.structured_outputs_config.disable_any_whitespace = true;
  });
  server.engine.set_script(steps("yes"));
  post(server, "{" + kHello + kChoice + "}");
  const auto grammar = server.engine.wait_submit(0).sampling.grammar;
  EXPECT_EQ(grammar.after_token, -1);
  EXPECT_FALSE(grammar.any_whitespace);
}

// Beyond Offload::kMinBytes the template and the tokens are made beside the loop; the answer is the same.
TEST(Chat, ALongRequestIsAnsweredLikeAShortOne) {
  TestServer server([](Settings& s) { s.max_num_queued_reqs = 1; });
  server.engine.set_script(steps("ok"));
  std::string messages;
  for (int i = 0; i < 400; ++i) messages += R"({"role":"user","content":")" + std::string(100, 'a') + "\"},";
  messages += R"({"role":"user","content":"Hello"})";
  const std::string body = R"({"truncate_prompt_tokens":64,"messages":[)" + messages + "]}";
  const json answer = post(server, body);
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "ok");
  const auto prompt = server.engine.wait_submit(0).tokens;
  ASSERT_EQ(prompt.size(), 64u);
  EXPECT_EQ((std::vector<TokenId>{prompt.end() - 3, prompt.end()}), (std::vector<TokenId>{4084, 1458, 4085}));
  EXPECT_EQ(post(server, R"({"messages":[)" + messages + "]}", 400)["error"]["param"], "input_tokens");
  auto client = server.client();
  const auto tokenized = client.post("/tokenize", R"({"messages":[)" + messages + "]}");
  ASSERT_TRUE(tokenized);
  EXPECT_GT(json::parse(tokenized->body)["count"], 4096);
}

TEST(Chat, UnknownMarkersAreRefusedAtStart) {
  Settings settings = test_settings();
  settings.reasoning_parser = "deepseek_r1";
  FakeEngine engine;
  const auto server = ApiServer::start(settings, engine.factory());
  ASSERT_FALSE(server.ok());
  EXPECT_NE(server.error().message.find("<think>"), std::string::npos);
}

TEST(Chat, LogprobsHaveBytesAndTop) {
  TestServer server;
  RequestOutput output = finished(FinishReason::kLength, {ids_of("Hi")[0]});
  output.logprobs = {{.token_ids = {ids_of("Hi")[0], 5}, .logprobs = {-0.5f, -0.25f}, .rank = 2}};
  server.engine.set_script({output});
  const json body = post(server, "{" + kHello + R"(,"logprobs":true,"top_logprobs":1})");
  const json& first = body["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(first["token"], "Hi");
  EXPECT_EQ(first["logprob"], -0.5);
  EXPECT_EQ(first["bytes"], (json{72, 105}));
  ASSERT_EQ(first["top_logprobs"].size(), 1u);
  EXPECT_EQ(first["top_logprobs"][0]["logprob"], -0.25);
  EXPECT_EQ(server.engine.wait_submit(0).sampling.num_logprobs, 1);
}

}  // namespace
}  // namespace manta::api::testing
