// Reads the parts of a Hugging Face tokenizer.json that byte-level BPE needs. Whatever else is in the file and could
// change ids is refused by name (kUnimplemented); a file that contradicts itself is kInvalidArgument.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "text/added_tokens.h"

namespace manta::text {

struct TokenizerSpec {
  struct Split {
    std::string pattern;  // Oniguruma syntax, or plain text
    bool is_literal = false;
  };
  std::vector<std::pair<std::string, TokenId>> vocab;  // entries in the byte alphabet (text/byte_level.h)
  std::vector<std::pair<std::string, std::string>> merges;
  std::vector<AddedToken> added_tokens;
  std::vector<Split> splits;
  std::vector<TokenId> prefix, suffix;  // what add_special_tokens puts around the ids
};

// Ids are bounded by this, so that a hostile file cannot ask for a table of 2^31 entries.
inline constexpr TokenId kMaxTokenId = (1 << 20) - 1;

Result<TokenizerSpec> parse_tokenizer_json(std::string_view json);

}  // namespace manta::text
