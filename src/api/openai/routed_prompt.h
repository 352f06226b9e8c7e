// What a router must know of a request before it can send it on: its prompts as token ids, made exactly as an api
// process makes them, and what it will cost. All else of the body is read by the api that answers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/http/message.h"
#include "api/loop_context.h"
#include "api/openai/api_error.h"
#include "base/ids.h"

namespace manta::api {

struct RoutedPrompt {
  std::vector<std::vector<TokenId>> prompts;
  int64_t n = 1;           // answers of each prompt
  int64_t max_tokens = 0;  // of each answer; 0: the request does not say
  bool wants_prompt_logprobs = false;
  bool has_kv_transfer_params = false;  // the client arranges the transfer itself
  std::string request_id;               // X-Request-Id, the body's or a random one
  std::string cache_salt;
};

// http: a POST to one of the routes that generate. Its body is left as it is.
Problem read_routed_prompt(const LoopContext& context, HttpRequest& http, RoutedPrompt& out);

}  // namespace manta::api
