// A server on a free port in front of a FakeEngine, with the embedded model's tokenizer.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "api/server.h"
#include "fake_engine.h"
#include "http_client.h"

namespace manta::api::testing {

inline Settings test_settings() {
  Settings settings;
  settings.model = "models/tiny-v3";
  settings.served_model_name = {"tiny"};
  settings.host = "127.0.0.1";
  settings.port = 0;
  settings.generation_config = "vllm";
  return settings;
}

class TestServer {
 public:
  explicit TestServer(const std::function<void(Settings&)>& change = {}) {
    Settings settings = test_settings();
    if (change) change(settings);
    auto server = ApiServer::start(settings, engine.factory());
    if (!server.ok()) throw std::runtime_error(server.error().message);  // fails the test that made it
    server_ = std::move(server).value();
  }

  ApiServer& operator*() { return *server_; }
  ApiServer* operator->() { return server_.get(); }
  uint16_t port() const { return server_->port(); }
  HttpClient client() const { return HttpClient(port()); }

  FakeEngine engine;

 private:
  std::unique_ptr<ApiServer> server_;
};

// Outputs as an engine gives them.
inline RequestOutput tokens(std::vector<TokenId> ids) {
  RequestOutput output;
  output.tokens = std::move(ids);
  return output;
}
inline RequestOutput finished(FinishReason reason, std::vector<TokenId> ids = {}, TokenId stop_token = -1) {
  RequestOutput output = tokens(std::move(ids));
  output.finish = reason;
  output.stop_token = stop_token;
  return output;
}

}  // namespace manta::api::testing
