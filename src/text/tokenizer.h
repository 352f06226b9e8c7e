// Text to token ids and back: byte-level BPE as a Hugging Face tokenizer.json describes it, with the ids of Hugging
// Face `tokenizers` for every text. One tokenizer serves all event loops of the process: it is immutable, every method
// is safe to call from any thread.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace manta::text {

struct TokenizerConfig;
struct TokenizerSpec;

struct EncodeOptions {
  bool add_special_tokens = false;  // BOS and the like, as post_processor (or a Llama class's add_bos_token) says
};

class Tokenizer {
 public:
  // path: a tokenizer.json, or the folder of a checkpoint; of a folder tokenizer_config.json is read as well.
  // A feature that would change ids and is not known here is refused by name.
  static Result<std::shared_ptr<const Tokenizer>> load(const std::string& path);
  // config may be null.
  static Result<std::shared_ptr<const Tokenizer>> from_json(std::string_view json, const TokenizerConfig* config);

  ~Tokenizer();

  // The ids of a text. Added tokens ("<｜User｜>") are recognised wherever they stand in it. Time grows as n log n at
  // worst, memory with the text. kInvalidArgument: the text is not well-formed UTF-8 (it says at which byte; nothing is
  // replaced, since the model would then see a text nobody sent), or longer than 1 GiB.
  Result<std::vector<TokenId>> encode(std::string_view text, EncodeOptions options = {}) const;

  // The text of ids; well-formed UTF-8 always, bytes that form no character become U+FFFD as in Hugging Face's decoder.
  // Ids without a token (see has_token) give nothing.
  std::string decode(std::span<const TokenId> ids, bool skip_special_tokens) const;

  // One past the largest id. A model may have more rows than that.
  TokenId vocab_size() const { return static_cast<TokenId>(tokens_.size()); }
  bool has_token(TokenId id) const { return find(id) != nullptr; }
  // As the vocabulary spells it ("Ġthe", "<｜User｜>"); empty for an id without a token. Lives as long as the
  // tokenizer.
  std::string_view id_to_token(TokenId id) const;
  std::optional<TokenId> token_to_id(std::string_view token) const;
  // The bytes the token adds to the output (" the"), not always whole characters. Lives as long as the tokenizer.
  std::string_view token_bytes(TokenId id) const;
  // Left out of the text by skip_special_tokens.
  bool is_special(TokenId id) const;

 private:
  struct Token {
    std::string text;   // empty: no token has this id
    std::string bytes;  // what it decodes to
    bool is_special = false;
  };
  struct Encoder;  // patterns, merges, added tokens
  struct Scratch;
  class ScratchLease;

  Tokenizer();
  Status add_vocab(const TokenizerSpec& spec);
  Status add_added_tokens(const TokenizerSpec& spec);
  Status build_encoder(const TokenizerSpec& spec);
  Status set_affixes(const TokenizerSpec& spec, const TokenizerConfig* config);
  Status encode_plain(std::string_view text, Scratch& scratch, std::vector<TokenId>& ids) const;
  const Token* find(TokenId id) const;

  std::vector<Token> tokens_;                                // by id
  std::unordered_map<std::string_view, TokenId> token_ids_;  // keys point into tokens_
  std::vector<TokenId> prefix_, suffix_;
  std::unique_ptr<const Encoder> encoder_;

  mutable std::mutex mutex_;                            // guards idle_
  mutable std::vector<std::unique_ptr<Scratch>> idle_;  // as many as encodes ever ran at once
};

}  // namespace manta::text
