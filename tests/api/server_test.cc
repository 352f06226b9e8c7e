// What the server does with clients that are wrong, slow, hostile or gone.
#include <gmock/gmock.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "test_server.h"

namespace manta::api::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

int status_of(const std::optional<ClientResponse>& response) {
  return response ? response->status : 0;
}

TEST(Server, StatusEndpoints) {
  TestServer server;
  auto client = server.client();
  const auto health = client.get("/health");
  ASSERT_EQ(status_of(health), 200);
  EXPECT_EQ(json::parse(health->body)["ranks"][0]["state"], "ready");
  EXPECT_EQ(status_of(client.get("/ping")), 200);
  EXPECT_TRUE(json::parse(client.get("/version")->body).contains("version"));
  EXPECT_EQ(client.get("/load")->body, R"({"server_load":0})");
  const json models = json::parse(client.get("/v1/models")->body);
  EXPECT_EQ(models["data"][0]["id"], "tiny");
  EXPECT_EQ(models["data"][0]["max_model_len"], 4096);
  server.engine.set_ready(false);
  EXPECT_EQ(status_of(client.get("/health")), 503);
  EXPECT_EQ(status_of(client.post("/v1/completions", R"({"prompt":"x"})")), 503);
}

TEST(Server, PathsMethodsAndContentTypes) {
  TestServer server;
  auto client = server.client();
  EXPECT_EQ(status_of(client.get("/nothing")), 404);
  const auto wrong_method = client.get("/v1/completions");
  EXPECT_EQ(status_of(wrong_method), 405);
  EXPECT_EQ(wrong_method->header("allow"), "POST");
  EXPECT_EQ(status_of(client.get("/v1/embeddings")), 501);
  client.send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n");
  EXPECT_EQ(status_of(client.read_response()), 400);
}

TEST(Server, ApiKey) {
  TestServer server([](Settings& s) { s.api_key = {"first", "second"}; });
  auto client = server.client();
  const auto refused = client.get("/v1/models");
  EXPECT_EQ(status_of(refused), 401);
  EXPECT_EQ(refused->body, R"({"error":"Unauthorized"})");
  EXPECT_EQ(status_of(client.get("/v1/models", "Authorization: Bearer secon\r\n")), 401);
  EXPECT_EQ(status_of(client.get("/v1/models", "Authorization: Bearer second\r\n")), 200);
  EXPECT_EQ(status_of(client.get("/health")), 200);
}

// Sends OPTIONS as a browser does before it calls from another origin.
std::optional<ClientResponse> preflight(HttpClient& client, const std::string& headers) {
  client.send("OPTIONS /v1/completions HTTP/1.1\r\nHost: t\r\n" + headers + "\r\n");
  return client.read_response();
}

TEST(Server, PagesOfAnyOriginMayCallUnlessToldOtherwise) {
  TestServer server([](Settings& s) { s.api_key = {"k"}; });
  auto client = server.client();
  const auto asked = preflight(client,
                               "Origin: http://a\r\nAccess-Control-Request-Method: POST\r\n"
                               "Access-Control-Request-Headers: authorization, content-type\r\n");
  ASSERT_EQ(status_of(asked), 200);
  EXPECT_EQ(asked->header("access-control-allow-origin"), "*");
  EXPECT_EQ(asked->header("access-control-allow-methods"), "POST");
  EXPECT_EQ(asked->header("access-control-allow-headers"), "authorization, content-type");
  // Refusals carry the header too, or the page could not read why.
  const auto refused = client.get("/v1/models", "Origin: http://a\r\n");
  EXPECT_EQ(status_of(refused), 401);
  EXPECT_EQ(refused->header("access-control-allow-origin"), "*");
  EXPECT_EQ(client.get("/health")->header("access-control-allow-origin"), "");
}

TEST(Server, OriginsMethodsAndHeadersAreCheckedAgainstTheirLists) {
  TestServer server([](Settings& s) {
    s.allowed_origins = {"http://a", "http://b"};
    s.allowed_methods = {"GET"};
    s.allowed_headers = {"Content-Type"};
    s.allow_credentials = true;
  });
  auto client = server.client();
  const auto answer = client.get("/health", "Origin: http://b\r\n");
  EXPECT_EQ(answer->header("access-control-allow-origin"), "http://b");
  EXPECT_EQ(answer->header("vary"), "Origin");
  EXPECT_EQ(answer->header("access-control-allow-credentials"), "true");
  EXPECT_EQ(client.get("/health", "Origin: http://c\r\n")->header("access-control-allow-origin"), "");
  const std::string from_a = "Origin: http://a\r\n", get = "Access-Control-Request-Method: GET\r\n";
  EXPECT_EQ(status_of(preflight(client, from_a + get)), 200);
  EXPECT_THAT(preflight(client, "Origin: http://c\r\n" + get)->body, HasSubstr("origin: http://c"));
  EXPECT_THAT(preflight(client, from_a + "Access-Control-Request-Method: POST\r\n")->body, HasSubstr("method: POST"));
  EXPECT_THAT(preflight(client, from_a + get + "Access-Control-Request-Headers: content-type,x-b\r\n")->body,
              HasSubstr("header: x-b"));
  EXPECT_EQ(status_of(preflight(client, "")), 405);  // OPTIONS of no browser
}

TEST(Server, TokenizerInfoIsServedWhereAsked) {
  TestServer closed;
  auto refused = closed.client();
  EXPECT_EQ(status_of(refused.get("/tokenizer_info")), 404);
  TestServer server([](Settings& s) {
    s.enable_tokenizer_info_endpoint = true;
    s.chat_template = "{{ messages }}";
  });
  auto client = server.client();
  const json info = json::parse(client.get("/tokenizer_info")->body);
  EXPECT_EQ(info["chat_template"], "{{ messages }}");
  EXPECT_TRUE(info.contains("tokenizer_class")) << info.dump();
}

std::string ids(size_t n) {
  std::string out = "[1";
  for (size_t i = 1; i < n; ++i) out += ",1";
  return out + "]";
}

// What goes to an engine is one frame of at most 16 MiB; a body may be twice as long.
TEST(Server, FieldsThatWouldNotFitAFrameAreRefusedByName) {
  TestServer server;
  const std::string many = ids(4'000'000), long_text(17 << 20, 's');
  const std::pair<const char*, std::string> fields[] = {
      {"cache_salt", '"' + long_text + '"'},
      {"kv_transfer_params", R"({"remote_request_id":")" + long_text + "\"}"},
      {"stop_token_ids", many},
      {"allowed_token_ids", many},
      {"bad_words", "[\"" + std::string(60'000, 'b') + "\"]"},
  };
  for (const auto& [name, value] : fields) {
    auto client = server.client();
    const auto refused = client.post("/v1/completions", std::string(R"({"prompt":"x",")") + name + "\":" + value + "}");
    ASSERT_EQ(status_of(refused), 400) << name;
    EXPECT_EQ(json::parse(refused->body)["error"]["param"], name);
  }
  auto client = server.client();
  server.engine.set_script({finished(FinishReason::kLength, {5})});
  const auto cut = client.post("/v1/completions", R"({"truncate_prompt_tokens":8,"prompt":)" + many + "}");
  EXPECT_EQ(status_of(cut), 200);
  EXPECT_EQ(server.engine.wait_submit(0).tokens.size(), 8u);
}

TEST(Server, LogProbabilitiesOfAWholeVocabularyAreBounded) {
  TestServer server([](Settings& s) { s.max_logprobs = -1; });
  auto client = server.client();
  // 4096 answers' tokens of 4096 log probabilities, 16 times.
  const auto refused =
      client.post("/v1/completions", R"({"prompt":"x","logprobs":-1,"n":16,"max_tokens":4000,"temperature":1})");
  ASSERT_EQ(status_of(refused), 400);
  EXPECT_EQ(json::parse(refused->body)["error"]["param"], "logprobs");
}

TEST(Server, RequestIdIsUsedAndEchoedWhereAsked) {
  TestServer server([](Settings& s) { s.enable_request_id_headers = true; });
  server.engine.set_script({finished(FinishReason::kLength, {5})});
  auto client = server.client();
  const auto response = client.post("/v1/completions", R"({"prompt":"x"})", "X-Request-Id: abc\r\n");
  EXPECT_EQ(response->header("x-request-id"), "abc");
  EXPECT_EQ(json::parse(response->body)["id"], "cmpl-abc");
}

TEST(Server, UnknownModelAndBadJson) {
  TestServer server;
  auto client = server.client();
  const auto unknown = client.post("/v1/completions", R"({"model":"other","prompt":"x"})");
  EXPECT_EQ(status_of(unknown), 404);
  EXPECT_THAT(unknown->body, HasSubstr("The model `other` does not exist."));
  EXPECT_EQ(status_of(client.post("/v1/completions", "{nonsense")), 400);
  EXPECT_EQ(status_of(client.post("/v1/completions", "")), 400);
  EXPECT_EQ(status_of(client.post("/v1/completions", std::string("{\"prompt\":\"\xff\"}"))), 400);
  const auto deep = client.post("/v1/completions", std::string(100'000, '['));
  EXPECT_EQ(status_of(deep), 400);
  EXPECT_EQ(status_of(client.get("/health")), 200);  // the same connection goes on
}

TEST(Server, HeadersAndBodiesAreBounded) {
  TestServer server([](Settings& s) {
    s.h11_max_incomplete_event_size = 4096;
    s.h11_max_header_count = 10;
    s.max_request_body_size = 10'000;
  });
  auto huge = server.client();
  EXPECT_EQ(status_of(huge.get("/health", "X: " + std::string(100'000, 'a') + "\r\n")), 431);
  EXPECT_TRUE(huge.wait_closed());
  auto many = server.client();
  std::string headers;
  for (int i = 0; i < 20; ++i) headers += "X: y\r\n";
  EXPECT_EQ(status_of(many.get("/health", headers)), 431);
  auto long_body = server.client();
  EXPECT_EQ(status_of(long_body.post("/v1/completions", std::string(20'000, ' '))), 413);
  auto chunked = server.client();
  chunked.send(
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; ++i) chunked.send("400\r\n" + std::string(1024, ' ') + "\r\n");
  EXPECT_EQ(status_of(chunked.read_response()), 413);
  auto garbage = server.client();
  garbage.send("\x16\x03\x01 this is no HTTP\r\n\r\n");
  EXPECT_EQ(status_of(garbage.read_response()), 400);
}

// The last chunk of an empty body, byte by byte: found by the fuzzer, as an assertion of the parser.
TEST(Server, AChunkedBodyMayComeInAnyPieces) {
  TestServer server;
  server.engine.set_script({finished(FinishReason::kLength, {5})});
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: "
      "chunked\r\n\r\n";
  const std::pair<std::string, int> bodies[] = {{"0\r\n\r\n", 400},
                                                {"e\r\n{\"prompt\":\"x\"}\r\n0\r\nA: b\r\n\r\n", 200}};
  for (const auto& [body, status] : bodies) {
    auto client = server.client();
    client.send(head);
    for (const char c : body) {
      client.send({&c, 1});
      ASSERT_TRUE(server.client().get("/ping"));  // a turn of the loop: what was sent is read before the next byte goes
    }
    EXPECT_EQ(status_of(client.read_response()), status);
  }
}

TEST(Server, ATrailerWithoutEndIsRefused) {
  TestServer server([](Settings& s) { s.h11_max_incomplete_event_size = 4096; });
  auto client = server.client();
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
      "0\r\n");
  for (int i = 0; i < 100; ++i) client.send("A: " + std::string(997, 'a') + "\r\n");
  EXPECT_EQ(status_of(client.read_response()), 431);
}

TEST(Server, ExpectContinueAndChunkedBodies) {
  TestServer server;
  server.engine.set_script({finished(FinishReason::kLength, {5})});
  auto client = server.client();
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  EXPECT_EQ(status_of(client.read_response()), 100);
  client.send("d\r\n{\"prompt\":\"x\"\r\n1\r\n}\r\n0\r\n\r\n");
  EXPECT_EQ(status_of(client.read_response()), 200);
}

TEST(Server, PipelinedRequestsAreAnsweredInOrder) {
  TestServer server;
  auto client = server.client();
  client.send(
      "GET /version HTTP/1.1\r\nHost: t\r\n\r\nGET /nothing HTTP/1.1\r\nHost: t\r\n\r\n"
      "HEAD /version HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(status_of(client.read_response()), 200);
  EXPECT_EQ(status_of(client.read_response()), 404);
  EXPECT_TRUE(client.wait_closed());
}

TEST(Server, IdleAndDribblingConnectionsEnd) {
  TestServer server([](Settings& s) { s.http_timeout_keep_alive = 1; });
  auto idle = server.client();
  auto dribbling = server.client();
  dribbling.send("GET /hea");
  EXPECT_TRUE(idle.wait_closed());
  // What has begun gets the time of a request head, not that of an idle connection.
  dribbling.send("lth HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(status_of(dribbling.read_response()), 200);
}

TEST(Server, HalfClosedClientCountsAsGone) {
  TestServer server;
  auto client = server.client();
  client.start_post("/v1/completions", R"({"prompt":"x","stream":true})");
  server.engine.wait_submit(0);
  client.finish_sending();
  EXPECT_EQ(server.engine.wait_aborts(1), 1u);
  EXPECT_TRUE(client.wait_closed());
}

TEST(Server, ClientThatDoesNotReadIsCutOffAtABound) {
  TestServer server;
  auto client = server.client();
  client.start_post("/v1/completions", R"({"prompt":"x","stream":true,"max_tokens":4000})");
  const Submit submit = server.engine.wait_submit(0);
  // Far more than the socket's buffers and the backlog hold together. Nobody reads.
  const std::vector<TokenId> many(2000, 5);
  for (int i = 0; i < 20'000 && server.engine.num_running() > 0; ++i) server.engine.emit(submit.id, tokens(many));
  EXPECT_EQ(server.engine.wait_aborts(1), 1u);
}

TEST(Server, TenfoldOverAdmissionIsRefusedAndRecovers) {
  TestServer server([](Settings& s) { s.max_num_queued_reqs = 20; });
  std::vector<std::unique_ptr<HttpClient>> admitted, refused;
  for (int i = 0; i < 20; ++i) {
    admitted.push_back(std::make_unique<HttpClient>(server.port()));
    admitted.back()->start_post("/v1/completions", R"({"prompt":"x","stream":true})");
  }
  server.engine.wait_submit(19);
  for (int i = 0; i < 180; ++i) {
    refused.push_back(std::make_unique<HttpClient>(server.port()));
    ASSERT_EQ(status_of(refused.back()->post("/v1/completions", R"({"prompt":"x"})")), 503);
  }
  for (uint64_t serial = 1; serial <= 20; ++serial) {
    server.engine.emit({7, serial}, finished(FinishReason::kLength, {5}));
  }
  for (auto& client : admitted) EXPECT_EQ(status_of(client->read_response()), 200);
  server.engine.set_script({finished(FinishReason::kLength, {5})});
  for (auto& client : refused) EXPECT_EQ(status_of(client->post("/v1/completions", R"({"prompt":"x"})")), 200);
}

TEST(Server, DrainLetsStreamsEndAndRefusesNewOnes) {
  TestServer server;
  auto streaming = server.client(), idle = server.client();
  ASSERT_EQ(status_of(idle.get("/health")), 200);
  streaming.start_post("/v1/completions", R"({"prompt":"x","stream":true})");
  const Submit submit = server.engine.wait_submit(0);
  server.engine.emit(submit.id, tokens({5}));
  ASSERT_TRUE(streaming.read_event());
  server->drain();
  EXPECT_TRUE(idle.wait_closed());
  auto late = server.client();
  const auto refused = late.post("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(status_of(refused), 503);
  EXPECT_EQ(refused->header("connection"), "close");
  std::thread joiner([&] { server->join(); });
  server.engine.emit(submit.id, finished(FinishReason::kLength, {5}));
  EXPECT_TRUE(streaming.read_event());
  EXPECT_EQ(streaming.read_event().value_or(""), "[DONE]");
  joiner.join();
  EXPECT_EQ(server->num_connections(), 0u);
}

TEST(Server, ShutdownTimeoutCutsOffWhatStillRuns) {
  TestServer server([](Settings& s) { s.shutdown_timeout = 1; });
  auto client = server.client();
  client.start_post("/v1/completions", R"({"prompt":"x","stream":true})");
  server.engine.wait_submit(0);
  server->drain();
  server->join();
  EXPECT_EQ(server.engine.wait_aborts(1), 1u);
  EXPECT_TRUE(client.wait_closed());
}

TEST(Server, SeveralLoopsShareConnectionsEvenly) {
  TestServer server([](Settings& s) { s.api_server_count = 3; });
  server.engine.set_script({finished(FinishReason::kLength, {5})});
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 9; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server.port()));
    EXPECT_EQ(status_of(clients.back()->post("/v1/completions", R"({"prompt":"x"})")), 200);
  }
  EXPECT_EQ(server->num_connections(), 9u);
}

TEST(Server, PortInUseIsSaid) {
  TestServer server;
  Settings settings = test_settings();
  settings.port = server.port();
  FakeEngine engine;
  const auto second = ApiServer::start(settings, engine.factory());
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.error().message, HasSubstr("--port"));
}

TEST(Server, UnixSocket) {
  const std::string path = ::testing::TempDir() + "manta_api_" + std::to_string(::getpid()) + ".sock";
  for (int i = 0; i < 2; ++i) {  // the file does not stay behind
    TestServer server([&](Settings& s) { s.uds = path; });
    HttpClient client(path);
    EXPECT_EQ(status_of(client.get("/health")), 200);
    EXPECT_EQ(server->url(), "unix:" + path);
  }
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
}

TEST(Server, TokenizeAndDetokenize) {
  TestServer server;
  auto client = server.client();
  const json tokens = json::parse(client.post("/tokenize", R"({"prompt":"Hello","return_token_strs":true})")->body);
  EXPECT_EQ(tokens["tokens"], (json{1458}));
  EXPECT_EQ(tokens["count"], 1);
  EXPECT_EQ(tokens["token_strs"], (json{"Hello"}));
  const json chat = json::parse(client.post("/tokenize", R"({"messages":[{"role":"user","content":"Hello"}]})")->body);
  EXPECT_EQ(chat["tokens"], (json{0, 4084, 1458, 4085}));
  EXPECT_EQ(client.post("/detokenize", R"({"tokens":[1458]})")->body, R"({"prompt":"Hello"})");
  EXPECT_EQ(status_of(client.post("/detokenize", R"({"tokens":[99999]})")), 400);
}

TEST(Server, MetricsCountWhatHappened) {
  TestServer server;
  server.engine.set_script({tokens({5, 6}), finished(FinishReason::kStop, {1}, 1)});
  auto client = server.client();
  client.post("/v1/completions", R"({"prompt":[3,4,5]})");
  const auto metrics = client.get("/metrics");
  EXPECT_THAT(metrics->body, HasSubstr("vllm:prompt_tokens_total{model_name=\"tiny\",engine=\"0\"} 3\n"));
  EXPECT_THAT(metrics->body, HasSubstr("vllm:generation_tokens_total{model_name=\"tiny\",engine=\"0\"} 3\n"));
  EXPECT_THAT(metrics->body, HasSubstr("finished_reason=\"stop\"} 1\n"));
  EXPECT_THAT(metrics->body, HasSubstr("vllm:time_to_first_token_seconds_count{model_name=\"tiny\",engine=\"0\"} 1\n"));
  EXPECT_THAT(metrics->body, HasSubstr("vllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"} 0.25\n"));
}

}  // namespace
}  // namespace manta::api::testing
