// The bodies of /v1/completions and /v1/chat/completions as values, ranges checked, before anything is known of the
// model. Field names and rules: docs/api.md; both vLLM generations' spellings are read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/openai/api_error.h"
#include "api/openai/field.h"
#include "base/ids.h"
#include "sample/sampling_params.h"

namespace manta::api {

struct StreamOptions {
  bool include_usage = false;
  bool continuous_usage_stats = false;
};

// What both endpoints share. Optionals are what a server-wide default may fill.
struct GenerateRequest {
  std::string model;
  std::optional<int64_t> max_tokens;  // also max_completion_tokens, which wins
  bool has_max_completion_tokens = false;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;  // 0 and -1: off
  double presence_penalty = 0, frequency_penalty = 0;
  std::optional<int64_t> seed;
  int64_t n = 1;
  std::vector<std::string> stop;
  std::vector<TokenId> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  int64_t min_tokens = 0;
  bool skip_special_tokens = true;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> allowed_token_ids;
  std::vector<std::string> bad_words;
  int64_t num_logprobs = kNone;         // kNone, or how many beside the chosen one; kWholeVocabulary
  int64_t num_prompt_logprobs = kNone;  // likewise
  sample::GrammarSpec grammar;
  bool stream = false;
  std::optional<StreamOptions> stream_options;
  int64_t stream_interval = 0;                    // 0: the server's
  std::optional<int64_t> truncate_prompt_tokens;  // keep so many; -1: as many as fit
  bool truncate_left = true;                      // drop from the beginning
  bool add_special_tokens = true;
  bool return_token_ids = false;
  std::optional<bool> return_tokens_as_token_ids;
  int64_t priority = 0;
  std::string cache_salt;
  std::string request_id;
  std::string kv_transfer_params;  // JSON object or empty
  bool only_prefills = false;      // kv_transfer_params.do_remote_decode: another deployment generates the answers

  static constexpr int64_t kNone = -2;
  static constexpr int64_t kWholeVocabulary = -1;
};

struct PromptInput {
  std::string text;
  std::vector<TokenId> ids;
  bool is_ids = false;  // which of the two it is
};

struct CompletionRequest : GenerateRequest {
  std::vector<PromptInput> prompts;
  bool echo = false;
};

enum class ToolChoice { kNone, kAuto, kRequired, kNamed };

struct ChatRequest : GenerateRequest {
  std::string messages;                   // JSON array, content parts already joined to strings
  std::string tools;                      // JSON array or empty
  std::optional<ToolChoice> tool_choice;  // not given: auto with tools, none without
  std::string tool_name;                  // kNamed
  bool parallel_tool_calls = true;
  bool want_logprobs = false;
  int64_t top_logprobs = 0;
  std::string documents;      // JSON array or empty
  std::string chat_template;  // in the place of the model's; empty: none
  // Variables for the template: chat_template_kwargs and reasoning_effort. JSON values by name.
  std::vector<std::pair<std::string, std::string>> template_kwargs;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  bool include_reasoning = true;
};

// root: the body. What it says is in request even when a problem is returned, as far as it was read.
Problem parse_completion(Json root, CompletionRequest& request);
Problem parse_chat(Json root, ChatRequest& request);

}  // namespace manta::api
