// Log probabilities in the three forms clients know.
#pragma once

#include <span>

#include "api/openai/json_writer.h"
#include "base/ids.h"
#include "sample/sampling_params.h"
#include "text/tokenizer.h"

namespace manta::api {

using Rows = std::span<const sample::TokenLogprobs>;

struct LogprobStyle {
  const text::Tokenizer& tokenizer;
  bool tokens_as_ids = false;  // "token_id:17" instead of the token's text
};

// choices[].logprobs of a completion: four arrays over tokens. prompt: with echo, the prompt's ids and their rows
// (rows[i] is of ids[i + 1]; the first token has none). text_offset is read and moved on.
void write_completion_logprobs(const LogprobStyle& style, std::span<const TokenId> prompt_ids, Rows prompt_rows,
                               Rows rows, size_t& text_offset, JsonWriter& writer);
// choices[].logprobs of a chat answer: {"content":[…]}
void write_chat_logprobs(const LogprobStyle& style, Rows rows, JsonWriter& writer);
// prompt_logprobs: null, then per token {id: {logprob, rank, decoded_token}}
void write_prompt_logprobs(const LogprobStyle& style, Rows rows, JsonWriter& writer);

}  // namespace manta::api
