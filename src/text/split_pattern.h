// One regular expression of a pre-tokenizer. tokenizer.json writes it in Oniguruma's (Ruby) syntax; it is matched by
// PCRE2-JIT. The two agree on most of the syntax and not on all of it, so the pattern is translated construct by
// construct, and what is not known to mean the same is refused by name instead of giving other ids.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace manta::text {

// The PCRE2 spelling of an Oniguruma pattern: \p{L} and its like gain what Unicode 15-16 added, \s loses U+180E.
// kUnimplemented names the construct when there is no safe spelling.
Result<std::string> to_pcre2(std::string_view onig_pattern);

class SplitPattern {
 public:
  // is_literal: the pattern is a plain string. kInvalidArgument: it does not compile, or it can match nothing at all.
  static Result<SplitPattern> compile(std::string_view onig_pattern, bool is_literal);

  // Match buffers and JIT stack; one per thread and at most one match at a time.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(Scratch&&) noexcept;
    Scratch& operator=(Scratch&&) = delete;

   private:
    friend class SplitPattern;
    struct State;
    std::unique_ptr<State> state_;
  };

  struct Match {
    size_t begin, end;
  };
  // The leftmost match at or after `from`; empty when there is none. text must be well-formed UTF-8 and `from` the
  // start of a character. kResourceExhausted: the pattern backtracks beyond a bound that grows with the text.
  Result<std::optional<Match>> find(std::string_view text, size_t from, Scratch& scratch) const;

 private:
  std::shared_ptr<const void> code_;  // pcre2_code
};

}  // namespace manta::text
