// Turns the token ids of one stream into text as they come. What push() and finish() append is, put together, exactly
// Tokenizer::decode of all ids; a character is never split, so text may lag a token behind. Cost: the token's bytes.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/ids.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace manta::text {

// A value: copies go on independently. Not thread-safe.
class Detokenizer {
 public:
  // Byte-level decoding puts no spaces between special tokens, so spaces_between_special_tokens has nothing to change.
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens)
      : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens) {}

  // Before the first push: the ids the stream follows. A prompt given as ids may end inside a character, which the
  // first tokens of the answer then complete.
  void prime(std::span<const TokenId> prompt);

  // Appends the text that id completes, possibly nothing. Ids without a token give nothing.
  void push(TokenId id, std::string& out);
  // Ends the stream: bytes still held back become U+FFFD. Afterwards a new stream may begin.
  void finish(std::string& out) { utf8_.finish(out); }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_tokens_;
  Utf8Stream utf8_;
};

}  // namespace manta::text
