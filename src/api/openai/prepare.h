// From a request's fields to what an engine is sent: defaults filled in, prompts tokenized, everything that depends
// on the model checked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "api/loop_context.h"
#include "api/openai/request.h"
#include "engine/messages.h"
#include "sample/sampling_params.h"
#include "text/stop_strings.h"

namespace manta::api {

struct Prompt {
  std::string text;  // as sent or rendered; empty for a prompt given as ids
  std::vector<TokenId> ids;
  int32_t max_tokens = 0;  // what fits behind it
};

// One request of a client, ready to be generated: prompts × n sequences.
struct Prepared {
  std::vector<Prompt> prompts;
  int64_t n = 1;
  sample::SamplingParams sampling;  // max_tokens is each prompt's own
  bool has_seed = false;            // sampling.seed is the request's; otherwise one is drawn for each sequence
  std::shared_ptr<const text::StopStrings> stop;  // null: none
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  bool generate = true;  // false: only the prompt is wanted (echo with max_tokens 0)

  bool stream = false;
  bool include_usage = false;
  bool continuous_usage_stats = false;
  int64_t stream_interval = 1;
  bool return_token_ids = false;
  bool tokens_as_ids = false;

  int32_t priority = 0;
  std::string cache_salt;
  std::string kv_transfer_params;
  std::optional<int> data_parallel_rank;
  std::string id;  // "cmpl-…", "chatcmpl-…"
};

// default_max_tokens: for requests that say none; 0: as many as fit.
Problem prepare(const LoopContext& context, const engine::Welcome& engine, const GenerateRequest& request,
                std::vector<PromptInput> inputs, int64_t default_max_tokens, Prepared& out);

// The model is known, and some engine has said how long a prompt may be.
Problem check_model(const LoopContext& context, const std::string& name, engine::Welcome& engine);

}  // namespace manta::api
