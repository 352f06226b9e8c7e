#include <limits>

#include "api/openai/request_fields.h"

namespace manta::api {
namespace {

using R = CompletionRequest;
// Prompts of one request; each is a request to an engine.
constexpr size_t kMaxPrompts = 4096;

Problem append_prompt(Json value, R& r) {
  PromptInput& prompt = r.prompts.emplace_back();
  if (value.is_string()) return read_string(value, "prompt", prompt.text);
  prompt.is_ids = true;
  return read_token_ids(value, "prompt", prompt.ids);
}

// "text", ["text", …], [1, 2, …] or [[1, 2], …]
Problem read_prompt(Json value, R& r) {
  r.prompts.clear();
  simdjson::dom::array array;
  if (value.get(array) != simdjson::SUCCESS) return append_prompt(value, r);
  if (array.size() == 0) return bad_value("prompt", "prompt must not be an empty array.");
  const Json first = array.at(0).value_unsafe();
  if (!first.is_string() && !first.is_array()) return append_prompt(value, r);
  if (array.size() > kMaxPrompts) {
    return bad_value("prompt", fmt::format("prompt holds {} prompts, at most {}.", array.size(), kMaxPrompts));
  }
  for (const Json item : array) {
    if (auto problem = append_prompt(item, r)) return problem;
  }
  return {};
}

Problem refuse_suffix(Json, R&) {
  return bad_value("suffix", "suffix is not currently supported");
}

constexpr Field<R> kFields[] = {
    {"prompt", read_prompt},
    {"echo", [](Json v, R& r) { return read_bool(v, "echo", r.echo); }},
    {"suffix", refuse_suffix},
    {"logprobs",
     [](Json v, R& r) {
       return read_int(v, "logprobs", {R::kWholeVocabulary, std::numeric_limits<int32_t>::max()}, r.num_logprobs);
     }},
};

}  // namespace

std::span<const Field<CompletionRequest>> completion_fields() {
  return kFields;
}

}  // namespace manta::api
