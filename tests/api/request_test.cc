// The fields of a request: what is taken, what is refused, and with which field at fault.
#include "api/openai/request.h"

#include <gtest/gtest.h>

#include "api/openai/json_writer.h"
#include "api/openai/tool_schema.h"

namespace manta::api {
namespace {

Problem parse(std::string body, CompletionRequest& request) {
  static JsonParser parser;
  Json root;
  if (auto problem = parser.parse(body, root)) return problem;
  return parse_completion(root, request);
}

TEST(Request, TakesWhatBothVllmGenerationsTake) {
  CompletionRequest r;
  const auto problem = parse(
      R"({"model":"m","prompt":["a","b"],"max_tokens":5,"temperature":0.5,"top_k":-1,"stop":"x","seed":-3,
          "logit_bias":{"7":500},"n":2,"stream":true,"stream_options":{"include_usage":true},"guided_choice":["a","b"],
          "unknown_field":{"x":[1]},"user":null,"max_completion_tokens":9,"min_tokens":2.0})",
      r);
  ASSERT_FALSE(problem) << problem->message;
  EXPECT_EQ(r.prompts.size(), 2u);
  EXPECT_EQ(r.max_tokens, 9);
  EXPECT_EQ(r.top_k, -1);
  EXPECT_EQ(r.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(r.seed, -3);
  EXPECT_EQ(r.logit_bias[0].second, 100.0f);
  EXPECT_EQ(r.min_tokens, 2);
  EXPECT_TRUE(r.stream_options->include_usage);
  EXPECT_EQ(r.grammar.kind, sample::GrammarKind::kChoice);
  EXPECT_EQ(r.grammar.text, R"(["a","b"])");
}

struct Refusal {
  const char* fields;  // beside the prompt
  const char* param;
  int status = 400;
};

class Refused : public ::testing::TestWithParam<Refusal> {};

TEST_P(Refused, NamesTheField) {
  CompletionRequest r;
  const auto problem = parse(std::string(R"({"prompt":"x",)") + GetParam().fields + "}", r);
  ASSERT_TRUE(problem) << GetParam().fields;
  EXPECT_EQ(problem->param, GetParam().param) << problem->message;
  EXPECT_EQ(problem->status, GetParam().status);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, Refused,
    ::testing::Values(Refusal{R"("temperature":-1)", "temperature"}, Refusal{R"("temperature":2.5)", "temperature"},
                      Refusal{R"("temperature":"hot")", "temperature"}, Refusal{R"("top_p":0)", "top_p"},
                      Refusal{R"("top_p":1.1)", "top_p"}, Refusal{R"("top_k":-2)", "top_k"},
                      Refusal{R"("min_p":2)", "min_p"}, Refusal{R"("presence_penalty":3)", "presence_penalty"},
                      Refusal{R"("repetition_penalty":0)", "repetition_penalty"}, Refusal{R"("n":0)", "n"},
                      Refusal{R"("n":100000)", "n"}, Refusal{R"("max_tokens":0)", "max_tokens"},
                      Refusal{R"("max_tokens":1.5)", "max_tokens"}, Refusal{R"("stop":[""])", "stop"},
                      Refusal{R"("stop":[1])", "stop"}, Refusal{R"("min_tokens":9,"max_tokens":3)", "min_tokens"},
                      Refusal{R"("seed":1e30)", "seed"}, Refusal{R"("logit_bias":{"a":1})", "logit_bias"},
                      Refusal{R"("allowed_token_ids":[])", "allowed_token_ids"},
                      Refusal{R"("bad_words":[""])", "bad_words"}, Refusal{R"("suffix":"x")", "suffix"},
                      Refusal{R"("best_of":2)", "best_of"}, Refusal{R"("stream_options":{})", "stream_options"},
                      Refusal{R"("stream":true,"prompt_logprobs":1)", "prompt_logprobs"},
                      Refusal{R"("prompt_logprobs":-2)", "prompt_logprobs"},
                      Refusal{R"("use_beam_search":true)", "use_beam_search", 501},
                      Refusal{R"("prompt_embeds":"x")", "prompt_embeds", 501},
                      Refusal{R"("truncate_prompt_tokens":-2)", "truncate_prompt_tokens"},
                      Refusal{R"("truncation_side":"up")", "truncation_side"},
                      Refusal{R"("cache_salt":"")", "cache_salt"},
                      Refusal{R"("structured_outputs":{})", "structured_outputs"},
                      Refusal{R"("structured_outputs":{"json":{},"regex":"a"})", "structured_outputs.regex"},
                      Refusal{R"("guided_json":{},"guided_regex":"a")", "guided_regex"},
                      Refusal{R"("guided_json":"{no json")", "guided_json"},
                      Refusal{R"("response_format":{"type":"xml"})", "response_format.type"},
                      Refusal{R"("response_format":{"type":"json_schema"})", "response_format"},
                      Refusal{R"("prompt":[])", "prompt"}, Refusal{R"("prompt":[[1],"a",-1])", "prompt"},
                      Refusal{R"("prompt":[-1])", "prompt"}, Refusal{R"("prompt":{})", "prompt"}));

TEST(Request, JsonWriterEscapesAndPutsCommas) {
  std::string out;
  JsonWriter writer(out);
  writer.begin_object().key("a").string("q\"\\\n\x01é").key("b").begin_array().number(int64_t{1}).number(-0.5f);
  writer.number(-std::numeric_limits<float>::infinity()).null().end_array().key("c").boolean(true).end_object();
  EXPECT_EQ(out, "{\"a\":\"q\\\"\\\\\\n\\u0001é\",\"b\":[1,-0.5,-9999,null],\"c\":true}");
}

TEST(Request, RequiredCallsComeOutAsSoonAsTheyAreComplete) {
  RequiredCallsParser parser;
  std::vector<text::ToolCallDelta> calls;
  parser.push(R"([{"name":"f","parameters":{"s":"}\"{"}})", calls);
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0].arguments, R"({"s":"}\"{"})");
  parser.push(R"(, {"name":"g","parameters":{}}])", calls);
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[1].index, 1);
}

}  // namespace
}  // namespace manta::api
