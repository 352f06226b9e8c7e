#include "api/openai/logprobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

namespace manta::api {
namespace {

std::string token_text(const LogprobStyle& style, TokenId id) {
  if (style.tokens_as_ids) return fmt::format("token_id:{}", id);
  return style.tokenizer.decode(std::span(&id, 1), /*skip_special_tokens=*/false);
}

size_t num_characters(std::string_view utf8) {
  return static_cast<size_t>(
      std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

// The chosen token, then the best ones that are not it: OpenAI's "up to logprobs + 1 elements".
void write_top(const LogprobStyle& style, const sample::TokenLogprobs& row, JsonWriter& writer) {
  writer.begin_object();
  for (size_t i = 0; i < row.token_ids.size(); ++i) {
    if (i > 0 && row.token_ids[i] == row.token_ids[0]) continue;
    std::string key;
    append_json_string(key, token_text(style, row.token_ids[i]));
    writer.key(std::string_view(key).substr(1, key.size() - 2)).number(row.logprobs[i]);
  }
  writer.end_object();
}

void write_chat_token(const LogprobStyle& style, TokenId id, float logprob, JsonWriter& writer) {
  writer.key("token").string(token_text(style, id)).key("logprob").number(logprob).key("bytes").begin_array();
  for (const char byte : style.tokenizer.token_bytes(id)) writer.number(int64_t{static_cast<unsigned char>(byte)});
  writer.end_array();
}

}  // namespace

void write_completion_logprobs(const LogprobStyle& style, std::span<const TokenId> prompt_ids, Rows prompt_rows,
                               Rows rows, size_t& text_offset, JsonWriter& writer) {
  // Tokens in order, each with its row; null for a prompt's first token.
  std::vector<std::pair<TokenId, const sample::TokenLogprobs*>> tokens;
  for (size_t i = 0; i < prompt_ids.size(); ++i) {
    tokens.emplace_back(prompt_ids[i], i > 0 && i <= prompt_rows.size() ? &prompt_rows[i - 1] : nullptr);
  }
  for (const auto& row : rows) {
    if (!row.token_ids.empty()) tokens.emplace_back(row.token_ids[0], &row);
  }
  writer.begin_object().key("text_offset").begin_array();
  for (const auto& [id, row] : tokens) {
    writer.number(static_cast<int64_t>(text_offset));
    text_offset += num_characters(token_text(style, id));
  }
  writer.end_array().key("token_logprobs").begin_array();
  for (const auto& [id, row] : tokens) {
    if (row) {
      writer.number(row->logprobs[0]);
    } else {
      writer.null();
    }
  }
  writer.end_array().key("tokens").begin_array();
  for (const auto& [id, row] : tokens) writer.string(token_text(style, id));
  writer.end_array().key("top_logprobs").begin_array();
  for (const auto& [id, row] : tokens) {
    if (row) {
      write_top(style, *row, writer);
    } else {
      writer.null();
    }
  }
  writer.end_array().end_object();
}

void write_chat_logprobs(const LogprobStyle& style, Rows rows, JsonWriter& writer) {
  writer.begin_object().key("content").begin_array();
  for (const auto& row : rows) {
    if (row.token_ids.empty()) continue;
    writer.begin_object();
    write_chat_token(style, row.token_ids[0], row.logprobs[0], writer);
    writer.key("top_logprobs").begin_array();
    for (size_t i = 1; i < row.token_ids.size(); ++i) {
      writer.begin_object();
      write_chat_token(style, row.token_ids[i], row.logprobs[i], writer);
      writer.end_object();
    }
    writer.end_array().end_object();
  }
  writer.end_array().end_object();
}

void write_prompt_logprobs(const LogprobStyle& style, Rows rows, JsonWriter& writer) {
  writer.begin_array().null();
  for (const auto& row : rows) {
    writer.begin_object();
    for (size_t i = 0; i < row.token_ids.size(); ++i) {
      if (i > 0 && row.token_ids[i] == row.token_ids[0]) continue;
      writer.key(fmt::format_int(row.token_ids[i]).c_str()).begin_object().key("logprob").number(row.logprobs[i]);
      writer.key("rank").number(i == 0 ? int64_t{row.rank} : static_cast<int64_t>(i));
      writer.key("decoded_token").string(token_text(style, row.token_ids[i])).end_object();
    }
    writer.end_object();
  }
  writer.end_array();
}

}  // namespace manta::api
