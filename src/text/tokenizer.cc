#include "text/tokenizer.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/byte_level.h"
#include "text/file.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace manta::text {

namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;

Error bad(std::string message) {
  return error(ErrorCode::kInvalidArgument, "tokenizer.json: " + std::move(message));
}

// Bytes C0, C1 and F5 to FF are in no well-formed text.
bool occurs_in_utf8(int byte) {
  return byte != 0xC0 && byte != 0xC1 && byte < 0xF5;
}

std::vector<AddedToken> with_normalized(std::span<const AddedToken> tokens, bool normalized) {
  std::vector<AddedToken> result;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(result),
               [&](const AddedToken& token) { return token.normalized == normalized; });
  return result;
}

}  // namespace

struct Tokenizer::Encoder {
  AddedTokenSet added_tokens;             // found first
  AddedTokenSet normalized_added_tokens;  // found in what those leave
  PreTokenizer pre_tokenizer;
  Bpe bpe;
};

struct Tokenizer::Scratch {
  PreTokenizer::Scratch pre_tokenizer;
  Bpe::Scratch bpe;
  std::vector<AddedTokenSet::Segment> segments, inner_segments;
};

// A scratch for the length of one encode: an idle one, or a new one when all are in use.
class Tokenizer::ScratchLease {
 public:
  explicit ScratchLease(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    const std::lock_guard lock(tokenizer_.mutex_);
    if (tokenizer_.idle_.empty()) return;
    scratch_ = std::move(tokenizer_.idle_.back());
    tokenizer_.idle_.pop_back();
  }
  ~ScratchLease() {
    if (scratch_ == nullptr) return;
    const std::lock_guard lock(tokenizer_.mutex_);
    tokenizer_.idle_.push_back(std::move(scratch_));
  }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;

  Scratch& get() {
    if (scratch_ == nullptr) scratch_ = std::make_unique<Scratch>();
    return *scratch_;
  }

 private:
  const Tokenizer& tokenizer_;
  std::unique_ptr<Scratch> scratch_;
};

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const std::string& path) {
  const std::filesystem::path file(path);
  std::error_code ignored;
  if (!std::filesystem::is_directory(file, ignored)) {
    MANTA_ASSIGN(const std::string json, read_file(path));
    return from_json(json, nullptr);
  }
  MANTA_ASSIGN(const std::string json, read_file((file / "tokenizer.json").string()));
  auto config = load_tokenizer_config(path);
  if (!config.ok() && config.error().code != ErrorCode::kNotFound) return config.error();
  return from_json(json, config.ok() ? &*config : nullptr);
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_json(std::string_view json, const TokenizerConfig* config) {
  MANTA_ASSIGN(const TokenizerSpec spec, parse_tokenizer_json(json));
  std::shared_ptr<Tokenizer> tokenizer(new Tokenizer);
  MANTA_TRY(tokenizer->add_vocab(spec));
  MANTA_TRY(tokenizer->build_encoder(spec));  // before added tokens: merges speak of the model's own vocabulary
  MANTA_TRY(tokenizer->add_added_tokens(spec));
  MANTA_TRY(tokenizer->set_affixes(spec, config));
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

Status Tokenizer::add_vocab(const TokenizerSpec& spec) {
  TokenId max_id = -1;
  for (const auto& [text, id] : spec.vocab) max_id = std::max(max_id, id);
  for (const auto& token : spec.added_tokens) max_id = std::max(max_id, token.id);
  tokens_.resize(static_cast<size_t>(max_id) + 1);
  token_ids_.reserve(spec.vocab.size() + spec.added_tokens.size());
  for (const auto& [text, id] : spec.vocab) {
    Token& token = tokens_[id];
    if (text.empty()) return bad(fmt::format("the token of id {} is empty", id));
    if (!token.text.empty()) return bad(fmt::format("'{}' and '{}' both have the id {}", token.text, text, id));
    token.text = text;
    token.bytes = byte_level_bytes(text).value_or(text);
    if (!token_ids_.emplace(token.text, id).second) return bad(fmt::format("the token '{}' stands there twice", text));
  }
  return {};
}

Status Tokenizer::build_encoder(const TokenizerSpec& spec) {
  std::array<TokenId, 256> byte_ids{};
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = token_to_id(byte_level_char(static_cast<uint8_t>(byte)));
    if (!id && occurs_in_utf8(byte)) return bad(fmt::format("model.vocab has no token for the byte 0x{:02X}", byte));
    byte_ids[byte] = id.value_or(-1);
  }
  std::vector<Bpe::Merge> merges;
  merges.reserve(spec.merges.size());
  std::string joined;
  for (const auto& [left, right] : spec.merges) {
    joined.assign(left).append(right);
    const auto left_id = token_to_id(left), right_id = token_to_id(right), result = token_to_id(joined);
    if (!left_id || !right_id || !result) {
      return bad(fmt::format("merge {} joins '{}' and '{}', and model.vocab has no '{}'", merges.size(), left, right,
                             !left_id ? left : (!right_id ? right : joined)));
    }
    merges.push_back({*left_id, *right_id, *result});
  }
  std::vector<SplitPattern> splits;
  for (const auto& split : spec.splits) {
    MANTA_ASSIGN(auto pattern, SplitPattern::compile(split.pattern, split.is_literal));
    splits.push_back(std::move(pattern));
  }
  encoder_ = std::make_unique<Encoder>(Encoder{AddedTokenSet(with_normalized(spec.added_tokens, false)),
                                               AddedTokenSet(with_normalized(spec.added_tokens, true)),
                                               PreTokenizer(std::move(splits)), Bpe(merges, byte_ids)});
  return {};
}

// Hugging Face numbers added tokens itself and only warns when the file says otherwise; such a file is refused here.
Status Tokenizer::add_added_tokens(const TokenizerSpec& spec) {
  auto next_id = static_cast<TokenId>(spec.vocab.size());
  for (const auto& added : spec.added_tokens) {
    const auto known = token_to_id(added.content);
    const TokenId expected = known.value_or(next_id);
    if (added.id != expected) {
      return bad(fmt::format("added token '{}' has the id {}; Hugging Face would give it {}", added.content, added.id,
                             expected));
    }
    Token& token = tokens_[added.id];
    token.is_special |= added.special;
    if (known) {
      if (added.id >= next_id) next_id = added.id + 1;
      continue;
    }
    if (!token.text.empty()) {
      return bad(fmt::format("'{}' and '{}' both have the id {}", token.text, added.content, added.id));
    }
    ++next_id;
    token.text = added.content;
    token.bytes = byte_level_bytes(added.content).value_or(added.content);
    token_ids_.emplace(token.text, added.id);
  }
  return {};
}

// transformers' Llama classes replace the post-processor by what add_bos_token and add_eos_token say.
Status Tokenizer::set_affixes(const TokenizerSpec& spec, const TokenizerConfig* config) {
  prefix_ = spec.prefix;
  suffix_ = spec.suffix;
  const bool is_llama = config != nullptr && config->tokenizer_class.starts_with("LlamaTokenizer");
  if (!is_llama || !(config->add_bos_token || config->add_eos_token)) return {};
  const auto affix = [&](bool wanted, const std::string& token, std::vector<TokenId>& out) -> Status {
    out.clear();
    if (!wanted) return {};
    const auto id = token_to_id(token);
    if (!id) return bad(fmt::format("tokenizer_config.json wants '{}' added, which is no token", token));
    out.push_back(*id);
    return {};
  };
  MANTA_TRY(affix(config->add_bos_token.value_or(true), config->bos_token, prefix_));
  return affix(config->add_eos_token.value_or(false), config->eos_token, suffix_);
}

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kMaxTextBytes) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("text of {} bytes: at most {} can be encoded", text.size(), kMaxTextBytes));
  }
  if (!simdjson::validate_utf8(text.data(), text.size())) {
    const size_t pos = well_formed_prefix(text);
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("the text is not UTF-8: byte {} is 0x{:02x}", pos, static_cast<uint8_t>(text[pos])));
  }
  ScratchLease lease(*this);
  Scratch& scratch = lease.get();
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 4 + prefix_.size() + suffix_.size());
  if (options.add_special_tokens) ids = prefix_;
  scratch.segments.clear();
  encoder_->added_tokens.split(text, scratch.segments);
  for (const auto& segment : scratch.segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      MANTA_TRY(encode_plain(segment.text, scratch, ids));
    }
  }
  if (options.add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

Status Tokenizer::encode_plain(std::string_view text, Scratch& scratch, std::vector<TokenId>& ids) const {
  scratch.inner_segments.clear();
  encoder_->normalized_added_tokens.split(text, scratch.inner_segments);
  for (const auto& segment : scratch.inner_segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    MANTA_TRY(encoder_->pre_tokenizer.for_each_word(segment.text, scratch.pre_tokenizer, [&](std::string_view word) {
      encoder_->bpe.encode(word, scratch.bpe, ids);
    }));
  }
  return {};
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special_tokens) const {
  std::string text;
  Utf8Stream utf8;
  for (const TokenId id : ids) {
    const Token* token = find(id);
    if (token == nullptr || (skip_special_tokens && token->is_special)) continue;
    utf8.push(token->bytes, text);
  }
  utf8.finish(text);
  return text;
}

const Tokenizer::Token* Tokenizer::find(TokenId id) const {
  if (id < 0 || id >= vocab_size() || tokens_[id].text.empty()) return nullptr;
  return &tokens_[id];
}

std::string_view Tokenizer::id_to_token(TokenId id) const {
  const Token* token = find(id);
  return token != nullptr ? std::string_view(token->text) : std::string_view();
}

std::optional<TokenId> Tokenizer::token_to_id(std::string_view token) const {
  const auto it = token_ids_.find(token);
  return it != token_ids_.end() ? std::optional(it->second) : std::nullopt;
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  const Token* token = find(id);
  return token != nullptr ? std::string_view(token->bytes) : std::string_view();
}

bool Tokenizer::is_special(TokenId id) const {
  const Token* token = find(id);
  return token != nullptr && token->is_special;
}

}  // namespace manta::text
