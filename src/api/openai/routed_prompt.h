// What a router must know of a request before it can send it on: its prompts as token ids, made exactly as an api
// process makes them, and what it will cost. All else of the body is read by the api that answers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api/http/message.h"
#include "api/loop_context.h"
#include "api/openai/api_error.h"
#include "api/openai/request.h"
#include "base/ids.h"
#include "engine/messages.h"

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

// A request between its two halves: read, and not yet tokenized.
struct RoutedInputs {
  GenerateRequest request;
  std::unique_ptr<const ChatRequest> chat;  // null: a completion, whose prompts are in `prompts`
  std::vector<PromptInput> prompts;
  engine::Welcome engine;

  // Of all its answers; what admission counts.
  int64_t num_sequences() const { return (chat ? 1 : static_cast<int64_t>(prompts.size())) * request.n; }
};

// http: a POST to one of the routes that generate. Its body is left as it is. All of out but the prompts is filled.
Problem read_routed_request(const LoopContext& context, HttpRequest& http, RoutedInputs& inputs, RoutedPrompt& out);
// The template and the tokens. May run beside the loop: of the context it reads settings and model only.
Problem make_routed_prompts(const LoopContext& context, RoutedInputs& inputs, RoutedPrompt& out);

}  // namespace manta::api
