#include "text/detokenizer.h"

namespace manta::text {

void Detokenizer::prime(std::span<const TokenId> prompt) {
  // An unfinished character has at most three bytes; whatever is before them cannot matter.
  size_t first = prompt.size(), num_bytes = 0;
  while (first > 0 && num_bytes < 4) num_bytes += tokenizer_->token_bytes(prompt[--first]).size();
  std::string ignored;
  for (const TokenId id : prompt.subspan(first)) push(id, ignored);
}

void Detokenizer::push(TokenId id, std::string& out) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return;
  utf8_.push(tokenizer_->token_bytes(id), out);
}

}  // namespace manta::text
