// Any bytes as the structured output a request asks for. The first byte chooses the kind, the rest is the schema,
// expression, grammar or list. What compiles is walked: a token is accepted exactly when the bitmask has it.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sample/grammar.h"

namespace {

using namespace manta;          // NOLINT
using namespace manta::sample;  // NOLINT

constexpr TokenId kEnd = 261;
constexpr int kVocabSize = 300, kMaxSteps = 24;

void require(bool holds) {
  if (!holds) std::abort();
}

// Token b is the byte b; then some of several bytes, a special token and the end token.
std::unique_ptr<GrammarCompiler> make_compiler() {
  GrammarVocabulary v;
  for (int byte = 0; byte < 256; ++byte) v.token_bytes.push_back(std::string(1, static_cast<char>(byte)));
  for (const char* text : {"true", "{\"", "\":", "ab", "", ""}) v.token_bytes.push_back(text);
  v.vocab_size = kVocabSize;
  v.stop_token_ids = {kEnd};
  // No cache: it would hide what compiling costs, and grow.
  auto made = GrammarCompiler::make(v, {.max_cache_bytes = 0});
  require(made.ok());
  return std::move(made).value();
}

bool has(std::span<const uint32_t> words, TokenId token) {
  return words[token / 32] >> (token % 32) & 1;
}

// The n-th allowed token, cyclically; -1 when none is allowed.
TokenId pick(std::span<const uint32_t> words, unsigned n) {
  std::vector<TokenId> allowed;
  for (TokenId token = 0; token < kVocabSize; ++token) {
    if (has(words, token)) allowed.push_back(token);
  }
  return allowed.empty() ? -1 : allowed[n % allowed.size()];
}

void walk(GrammarMatcher& matcher, std::string_view choices) {
  std::array<uint32_t, (kVocabSize + 31) / 32> words{};
  int num_taken = 0;
  for (int step = 0; step < kMaxSteps && !matcher.is_terminated(); ++step) {
    const unsigned n = choices.empty() ? step : static_cast<unsigned char>(choices[step % choices.size()]);
    if (!matcher.fill_bitmask(words)) words.fill(~0u);
    for (TokenId token = kEnd + 1; token < kVocabSize; ++token) words[token / 32] &= ~(1u << (token % 32));
    if (const TokenId other = n % kVocabSize; !has(words, other)) require(!matcher.accept(other));
    const TokenId token = pick(words, n);
    if (token < 0) break;
    require(matcher.accept(token));
    ++num_taken;
  }
  matcher.rollback(num_taken);
  require(!matcher.is_terminated());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto compiler = make_compiler();
  if (size == 0) return 0;
  constexpr std::array kKinds = {GrammarKind::kJsonSchema, GrammarKind::kRegex,         GrammarKind::kEbnf,
                                 GrammarKind::kChoice,     GrammarKind::kStructuralTag, GrammarKind::kJsonObject};
  GrammarSpec spec;
  spec.kind = kKinds[(data[0] & 7) % kKinds.size()];
  spec.any_whitespace = (data[0] & 8) == 0;
  spec.text.assign(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto compiled = compiler->compile(spec);
  if (!compiled.ok()) {
    require(compiled.error().code == ErrorCode::kInvalidArgument && !compiled.error().message.empty());
    return 0;
  }
  const auto matcher = (*compiled)->make_matcher();
  walk(*matcher, spec.text);
  return 0;
}
