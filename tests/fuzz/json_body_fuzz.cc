// Any bytes as the body of a request: both endpoints read it, and what they accept keeps its promises.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "api/openai/request.h"
#include "api/openai/tool_schema.h"

namespace {

using namespace manta::api;

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const GenerateRequest& r) {
  require(r.n >= 1 && r.min_tokens >= 0 && r.max_tokens.value_or(0) >= 0);
  require(r.temperature.value_or(1) >= 0 && r.top_p.value_or(1) > 0 && r.min_p.value_or(0) >= 0);
  for (const auto& [id, bias] : r.logit_bias) require(bias >= -100 && bias <= 100);
  for (const auto& text : r.stop) require(!text.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static JsonParser parser;
  std::string body(reinterpret_cast<const char*>(data), size);
  Json root;
  if (const auto problem = parser.parse(body, root)) {
    require(!problem->message.empty());
    return 0;
  }
  CompletionRequest completion;
  if (const auto problem = parse_completion(root, completion)) {
    require(problem->status >= 400 && !problem->json().empty());
  } else {
    require(!completion.prompts.empty());
    check(completion);
  }
  ChatRequest chat;
  if (!parse_chat(root, chat) && !constrain_to_tools(chat)) {
    require(!chat.messages.empty());
    check(chat);
  }
  return 0;
}
