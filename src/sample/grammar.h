// Structured output: turns a GrammarSpec into the set of tokens that may come next, by xgrammar.
//
// Compiling is safe on any thread and several at a time; it is bounded by limits on the text, because a schema comes
// from a user and its cost grows faster than its length (1000 nested arrays: a minute; 128: 0.1 s on one Zen 4 core).
// Compiled grammars are kept in a cache of bounded size; a grammar in use stays alive when it drops out of it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "sample/grammar_matcher.h"
#include "sample/sampling_params.h"

namespace manta::sample {

struct GrammarVocabulary {
  // The raw bytes of each token by id; empty for special tokens, which no grammar allows.
  std::vector<std::string> token_bytes;
  int vocab_size = 0;                   // of the model's logits; >= token_bytes.size(), the rest is never allowed
  std::vector<TokenId> stop_token_ids;  // allowed when the text is complete
};

struct GrammarLimits {
  size_t max_text_bytes = 64 << 10;
  int max_nesting = 128;  // of brackets, braces and parentheses
  size_t max_cache_bytes = 64 << 20;
  int num_threads = 1;  // of one compilation
};

class CompiledGrammar {
 public:
  virtual ~CompiledGrammar() = default;
  virtual std::unique_ptr<GrammarMatcher> make_matcher() const = 0;
  virtual size_t num_bytes() const = 0;
};

class GrammarCompiler {
 public:
  static Result<std::unique_ptr<GrammarCompiler>> make(const GrammarVocabulary& vocabulary,
                                                       const GrammarLimits& limits = {});
  virtual ~GrammarCompiler() = default;
  // kInvalidArgument, with xgrammar's reason and position, for what it cannot parse or does not support.
  virtual Result<std::shared_ptr<const CompiledGrammar>> compile(const GrammarSpec& spec) = 0;
};

// What compile() checks before it starts: size and nesting. For front-ends that only want to refuse early.
Status check_grammar_limits(const GrammarSpec& spec, const GrammarLimits& limits);

const char* to_string(GrammarKind kind);  // "json_schema", …, as the API spells it

}  // namespace manta::sample
