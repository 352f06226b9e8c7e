#include <nlohmann/json.hpp>

#include "test_server.h"
#include "text/tokenizer.h"

namespace manta::api::testing {
namespace {

using nlohmann::json;

// Ids of the embedded model's tokenizer, found by encoding.
std::vector<TokenId> ids_of(const std::string& text) {
  static const auto tokenizer = *text::Tokenizer::load("models/tiny-v3");
  return *tokenizer->encode(text);
}

json body_of(const std::optional<ClientResponse>& response) {
  return response ? json::parse(response->body, nullptr, false) : json();
}

TEST(Completions, AnswersWithTextUsageAndFinishReason) {
  TestServer server;
  auto ids = ids_of("Paris is nice");
  server.engine.set_script({tokens({ids.begin(), ids.end()}), finished(FinishReason::kStop, {1}, 1)});
  auto client = server.client();
  const auto response = client.post("/v1/completions", R"({"model":"tiny","prompt":"Hello","max_tokens":7})");
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 200);
  const json body = body_of(response);
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["model"], "tiny");
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(body["choices"].size(), 1u);
  EXPECT_EQ(body["choices"][0]["text"], "Paris is nice");  // the end token gives no text
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(body["choices"][0]["stop_reason"].is_null());
  EXPECT_EQ(body["usage"]["completion_tokens"], ids.size() + 1);
  EXPECT_EQ(body["usage"]["prompt_tokens"], ids_of("Hello").size());
  const Submit submit = server.engine.wait_submit(0);
  EXPECT_EQ(submit.tokens, ids_of("Hello"));
  EXPECT_EQ(submit.sampling.max_tokens, 7);
  EXPECT_EQ(submit.sampling.eos_token_ids, std::vector<TokenId>{1});
}

TEST(Completions, StreamsOneEventPerStepThenUsageThenDone) {
  TestServer server;
  const auto a = ids_of("Paris"), b = ids_of(" is");
  server.engine.set_script({tokens(a), tokens(b), finished(FinishReason::kLength, {b[0]})});
  auto client = server.client();
  const auto events = client.post_stream("/v1/completions",
                                         R"({"prompt":"Hello","stream":true,"stream_options":{"include_usage":true}})");
  ASSERT_EQ(events.size(), 5u);
  EXPECT_EQ(json::parse(events[0])["choices"][0]["text"], "Paris");
  EXPECT_EQ(json::parse(events[1])["choices"][0]["text"], " is");
  EXPECT_TRUE(json::parse(events[1])["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(json::parse(events[2])["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(json::parse(events[3])["choices"].size(), 0u);
  EXPECT_EQ(json::parse(events[3])["usage"]["completion_tokens"], a.size() + b.size() + 1);
  EXPECT_EQ(events[4], "[DONE]");
}

TEST(Completions, StopStringTruncatesOverrunAndAbortsTheEngine) {
  TestServer server;
  const auto ids = ids_of("one two three four");
  server.engine.set_script({tokens(ids)});
  auto client = server.client();
  const auto response = client.post("/v1/completions", R"({"prompt":"x","stop":["thr"]})");
  const json body = body_of(response);
  EXPECT_EQ(body["choices"][0]["text"], "one two ");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"][0]["stop_reason"], "thr");
  EXPECT_EQ(server.engine.wait_aborts(1), 1u);
  EXPECT_LT(body["usage"]["completion_tokens"].get<size_t>(), ids.size());
}

TEST(Completions, BatchOfPromptsTimesN) {
  TestServer server;
  server.engine.set_script({finished(FinishReason::kLength, ids_of("a"))});
  auto client = server.client();
  const auto response = client.post("/v1/completions", R"({"prompt":[[5,6],[7]],"n":2,"seed":10})");
  const json body = body_of(response);
  ASSERT_EQ(body["choices"].size(), 4u) << response->body;
  for (int i = 0; i < 4; ++i) EXPECT_EQ(body["choices"][i]["index"], i);
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(body["usage"]["completion_tokens"], 4);
  EXPECT_EQ(server.engine.wait_submit(0).tokens, (std::vector<TokenId>{5, 6}));
  EXPECT_EQ(server.engine.wait_submit(0).sampling.seed, 10u);
  EXPECT_EQ(server.engine.wait_submit(1).sampling.seed, 11u);
  EXPECT_EQ(server.engine.wait_submit(2).tokens, (std::vector<TokenId>{7}));
  EXPECT_EQ(server.engine.wait_submit(2).sampling.seed, 10u);
}

TEST(Completions, EngineErrorBeforeTheFirstTokenIsAProperStatus) {
  TestServer server;
  RequestOutput failed = finished(FinishReason::kError);
  failed.error_code = ErrorCode::kUnavailable;
  failed.error_message = "engine lost";
  server.engine.set_script({failed});
  auto client = server.client();
  const auto response = client.post("/v1/completions", R"({"prompt":"x","stream":true})");
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 503);
  EXPECT_EQ(response->header("retry-after"), "1");
  EXPECT_EQ(body_of(response)["error"]["message"], "engine lost");
}

TEST(Completions, EngineErrorInMidStreamIsAnEventThenDone) {
  TestServer server;
  RequestOutput failed = finished(FinishReason::kError);
  failed.error_message = "step failed";
  server.engine.set_script({tokens({5}), failed});
  auto client = server.client();
  const auto events = client.post_stream("/v1/completions", R"({"prompt":"x","stream":true})");
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(json::parse(events[1])["error"]["message"], "step failed");
  EXPECT_EQ(json::parse(events[1])["error"]["code"], 500);
  EXPECT_EQ(events[2], "[DONE]");
}

TEST(Completions, ClientThatHangsUpAbortsItsSequences) {
  TestServer server;
  auto client = server.client();
  client.start_post("/v1/completions", R"({"prompt":"x","n":3,"stream":true,"temperature":1})");
  server.engine.wait_submit(2);
  client.close();
  EXPECT_EQ(server.engine.wait_aborts(3), 3u);
  EXPECT_EQ(server.engine.num_running(), 0u);
}

TEST(Completions, EchoPutsThePromptInFront) {
  TestServer server;
  server.engine.set_script({finished(FinishReason::kLength, ids_of(" there"))});
  auto client = server.client();
  const auto response = client.post("/v1/completions", R"({"prompt":"Hello","echo":true})");
  EXPECT_EQ(body_of(response)["choices"][0]["text"], "Hello there");
}

TEST(Completions, QueueBoundIs503WithRetryAfter) {
  TestServer server([](Settings& s) { s.max_num_queued_reqs = 2; });
  auto first = server.client(), second = server.client();
  first.start_post("/v1/completions", R"({"prompt":"x","n":2})");
  server.engine.wait_submit(1);
  const auto response = second.post("/v1/completions", R"({"prompt":"x"})");
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 503);
  EXPECT_EQ(response->header("retry-after"), "1");
  // A place that came free is used again.
  server.engine.emit({7, 1}, finished(FinishReason::kLength, {5}));
  server.engine.emit({7, 2}, finished(FinishReason::kLength, {5}));
  ASSERT_TRUE(first.read_response());
  server.engine.set_script({finished(FinishReason::kLength, {5})});
  EXPECT_EQ(second.post("/v1/completions", R"({"prompt":"x"})")->status, 200);
}

}  // namespace
}  // namespace manta::api::testing
