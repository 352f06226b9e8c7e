// A router before api servers whose engines are in the test's hands: what is sent again when one of them dies, and what
// the client sees.
#include <gtest/gtest.h>

#include <future>
#include <nlohmann/json.hpp>

#include "router/router.h"
#include "test_cluster.h"
#include "test_server.h"

namespace manta::router {
namespace {

using api::ApiServer;
using api::testing::FakeEngine;
using api::testing::finished;
using api::testing::HttpClient;
using api::testing::test_settings;
using api::testing::tokens;
using engine::FinishReason;
using nlohmann::json;
using testing::Cluster;

class RelayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    start_api();
    cluster_.announce(relay_address_);
    Settings settings = test_settings();
    settings.decode_endpoints = {cluster_.address()};
    std::promise<void> complete;
    router_ = start_router(settings, [&] { complete.set_value(); }).value();
    ASSERT_EQ(complete.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  }

  void start_api() {
    engine_ = std::make_unique<FakeEngine>();
    api_ = ApiServer::start(test_settings(), engine_->factory(), relay_address_).value();
  }
  // As seen from outside: the process is gone with all its connections, and a new one comes at the same address.
  void replace_api() {
    api_ = nullptr;
    start_api();
  }

  // Makes the current api give these tokens, one at a time.
  void emit(const engine::Submit& submit, const std::vector<TokenId>& ids) {
    for (const TokenId id : ids) engine_->emit(submit.id, tokens({id}));
  }

  static std::string text_of(const std::vector<std::string>& events) {
    std::string text;
    for (const auto& event : events) {
      if (event == "[DONE]") continue;
      const json parsed = json::parse(event);
      for (const auto& choice : parsed["choices"]) text += choice["text"].get<std::string>();
    }
    return text;
  }

  const std::string relay_address_ = Cluster::name("api");
  Cluster cluster_;
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<ApiServer> router_;
};

TEST_F(RelayTest, AnswersComeThrough) {
  engine_->set_script({tokens({300, 301}), finished(FinishReason::kLength, {302})});
  HttpClient client(router_->port());
  const auto response =
      client.post("/v1/completions", R"({"prompt": [5, 6, 7], "max_tokens": 3})", "X-Request-Id: r1\r\n");
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->header("x-request-id"), "r1");
  const json body = json::parse(response->body);
  EXPECT_EQ(body["id"], "cmpl-r1");
  EXPECT_EQ(body["usage"]["completion_tokens"], 3);
  EXPECT_EQ(engine_->wait_submit(0).tokens, (std::vector<TokenId>{5, 6, 7}));
}

TEST_F(RelayTest, StreamGoesOnBehindTheLastToken) {
  HttpClient client(router_->port());
  client.start_post(
      "/v1/completions",
      R"({"prompt": [5, 6, 7], "max_tokens": 6, "stream": true, "stream_options": {"include_usage": true}})");
  const auto first = engine_->wait_submit(0);
  emit(first, {300, 301});
  std::vector<std::string> events;
  for (int i = 0; i < 2; ++i) events.push_back(client.read_event().value_or(""));
  replace_api();
  const auto second = engine_->wait_submit(0);
  EXPECT_EQ(second.tokens, (std::vector<TokenId>{5, 6, 7, 300, 301}));
  EXPECT_EQ(second.num_prompt_tokens, 3);
  EXPECT_EQ(second.sampling.seed, first.sampling.seed) << "drawn once, by the router";
  EXPECT_EQ(second.sampling.max_tokens, 6);
  emit(second, {302, 303});
  engine_->emit(second.id, finished(FinishReason::kLength, {304, 305}));
  while (const auto event = client.read_event()) events.push_back(*event);
  ASSERT_EQ(events.back(), "[DONE]");

  engine_->set_script({finished(FinishReason::kLength, {300, 301, 302, 303, 304, 305})});
  const auto undisturbed =
      client.post_stream("/v1/completions", R"({"prompt": [5, 6, 7], "max_tokens": 6, "stream": true})");
  EXPECT_EQ(text_of(events), text_of(undisturbed));
  const json usage = json::parse(events[events.size() - 2])["usage"];
  EXPECT_EQ(usage["completion_tokens"], 6);
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    EXPECT_EQ(json::parse(events[i])["id"], json::parse(events[0])["id"]);
    EXPECT_EQ(json::parse(events[i])["created"], json::parse(events[0])["created"]);
  }
}

TEST_F(RelayTest, ChoicesThatHadEndedAreNotMadeAgain) {
  HttpClient client(router_->port());
  client.start_post("/v1/completions",
                    R"({"prompt": [5], "max_tokens": 4, "n": 2, "seed": 9, "temperature": 1, "stream": true})");
  const auto one = engine_->wait_submit(0), two = engine_->wait_submit(1);
  engine_->emit(one.id, finished(FinishReason::kLength, {300, 301, 302, 303}));
  emit(two, {310});
  ASSERT_TRUE(client.read_event());
  ASSERT_TRUE(client.read_event());
  replace_api();
  const auto again = engine_->wait_submit(0);
  EXPECT_EQ(again.tokens, (std::vector<TokenId>{5, 310}));
  EXPECT_EQ(again.sampling.seed, two.sampling.seed);
  engine_->emit(again.id, finished(FinishReason::kLength, {311, 312, 313}));
  std::vector<std::string> rest;
  while (const auto event = client.read_event()) rest.push_back(*event);
  ASSERT_EQ(rest.size(), 2u);
  EXPECT_EQ(json::parse(rest[0])["choices"][0]["index"], 1);
  EXPECT_EQ(rest[1], "[DONE]");
  EXPECT_EQ(engine_->num_submits(), 1u);
}

TEST_F(RelayTest, StopStringAcrossTheBreakIsFound) {
  // What the two tokens spell together is the stop string, one on each side of the break.
  const auto model = api::load_served_model(test_settings());
  ASSERT_TRUE(model.ok());
  const auto ids = model->tokenizer->encode("hello world again");
  ASSERT_TRUE(ids.ok());
  ASSERT_GE(ids->size(), 3u);
  const auto head = model->tokenizer->decode({ids->data(), 1}, true);
  const auto both = model->tokenizer->decode({ids->data(), 2}, true);
  const json request = {{"prompt", {5}}, {"max_tokens", 8}, {"stream", true}, {"stop", {both}}};
  HttpClient client(router_->port());
  client.start_post("/v1/completions", request.dump());
  emit(engine_->wait_submit(0), {ids->at(0)});
  ASSERT_TRUE(client.read_event()) << "of the first token, whose text is held back";
  replace_api();
  emit(engine_->wait_submit(0), {ids->at(1)});
  std::vector<std::string> rest;
  while (const auto event = client.read_event()) rest.push_back(*event);
  ASSERT_GE(rest.size(), 2u);
  const json last = json::parse(rest[rest.size() - 2])["choices"][0];
  EXPECT_EQ(last["finish_reason"], "stop");
  EXPECT_EQ(last["stop_reason"], both);
  EXPECT_EQ(text_of(rest), "");
  EXPECT_EQ(engine_->wait_aborts(1), 1u) << head;
}

TEST_F(RelayTest, ClientGoneIsCancelled) {
  HttpClient client(router_->port());
  client.start_post("/v1/completions", R"({"prompt": [5], "max_tokens": 100, "stream": true})");
  emit(engine_->wait_submit(0), {300});
  ASSERT_TRUE(client.read_event());
  client.reset();
  EXPECT_EQ(engine_->wait_aborts(1), 1u);
}

TEST_F(RelayTest, LongAnswersComeInParts) {
  std::vector<TokenId> many(4000, 300);
  engine_->set_script({finished(FinishReason::kLength, many)});
  HttpClient client(router_->port());
  const auto response =
      client.post("/v1/completions", R"({"prompt": [5], "max_tokens": 4000, "return_token_ids": true})");
  ASSERT_TRUE(response);
  EXPECT_EQ(json::parse(response->body)["choices"][0]["token_ids"].size(), 4000u);
}

TEST_F(RelayTest, ARefusedContinuationWaitsForARankThatTakesIt) {
  HttpClient client(router_->port());
  client.start_post("/v1/completions", R"({"prompt": [5, 6], "max_tokens": 3, "stream": true})");
  emit(engine_->wait_submit(0), {300});
  ASSERT_TRUE(client.read_event());
  api_ = nullptr;
  engine_ = std::make_unique<FakeEngine>();
  engine_->set_submit_error(error(ErrorCode::kUnavailable, "full"));
  engine_->set_restless();  // the router tries again when it hears news of a rank
  api_ = ApiServer::start(test_settings(), engine_->factory(), relay_address_).value();
  EXPECT_GE(engine_->wait_refusals(10), 10u);
  engine_->set_submit_error(std::nullopt);
  const auto again = engine_->wait_submit(0);
  EXPECT_EQ(again.tokens, (std::vector<TokenId>{5, 6, 300}));
  engine_->emit(again.id, finished(FinishReason::kLength, {301, 302}));
  std::vector<std::string> rest;
  while (const auto event = client.read_event()) rest.push_back(*event);
  ASSERT_EQ(rest.size(), 2u);
  EXPECT_EQ(json::parse(rest[0])["choices"][0]["finish_reason"], "length") << rest[0];
  EXPECT_EQ(rest[1], "[DONE]");
}

TEST_F(RelayTest, FullQueueIsPassedOn) {
  engine_->set_submit_error(error(ErrorCode::kUnavailable, "no engine takes requests"));
  HttpClient client(router_->port());
  const auto response = client.post("/v1/completions", R"({"prompt": [5], "max_tokens": 4})");
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 503);
  EXPECT_EQ(response->header("retry-after"), "1");
}

// Prefill and decode apart.
class TwoSidedRelayTest : public ::testing::Test {
 protected:
  struct Side {
    explicit Side(const std::string& name) {
      engine.kv_transfer = json{{"engine_id", name}, {"host", "127.0.0.1"}, {"port", 1}}.dump();
      api = ApiServer::start(test_settings(), engine.factory(), address).value();
      cluster.announce(address);
    }
    const std::string address = Cluster::name("api");
    Cluster cluster;
    FakeEngine engine;
    std::unique_ptr<ApiServer> api;
  };

  void SetUp() override {
    Settings settings = test_settings();
    settings.prefill_endpoints = {prefill_.cluster.address()};
    settings.decode_endpoints = {decode_.cluster.address()};
    std::promise<void> complete;
    router_ = start_router(settings, [&] { complete.set_value(); }).value();
    ASSERT_EQ(complete.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  }

  Side prefill_{"p0"}, decode_{"d0"};
  std::unique_ptr<ApiServer> router_;
};

TEST_F(TwoSidedRelayTest, DecodeComputesAPromptThatPrefillRefuses) {
  prefill_.engine.set_submit_error(error(ErrorCode::kInvalidArgument, "not with this cache"));
  HttpClient client(router_->port());
  client.start_post("/v1/completions", R"({"prompt": [5, 6], "max_tokens": 1, "stream": true})");
  EXPECT_NE(decode_.engine.wait_submit(0).kv_transfer_params, "") << "it waits for blocks of the prefill rank";
  const auto again = decode_.engine.wait_submit(1);
  EXPECT_EQ(again.tokens, (std::vector<TokenId>{5, 6}));
  EXPECT_EQ(again.kv_transfer_params, "");
  decode_.engine.emit(again.id, finished(FinishReason::kLength, {300}));
  std::vector<std::string> events;
  while (const auto event = client.read_event()) events.push_back(*event);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(prefill_.engine.wait_refusals(1), 1u) << "asked again, another rank would say the same";
  const auto metrics = HttpClient(router_->port()).get("/metrics");
  ASSERT_TRUE(metrics);
  EXPECT_NE(metrics->body.find("manta_router_prefill_fallbacks_total 1"), std::string::npos);
}

}  // namespace
}  // namespace manta::router
