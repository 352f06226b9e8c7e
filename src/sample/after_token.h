// A grammar for the part of an answer that follows a token: structured output begins when reasoning has ended.
#pragma once

#include <memory>

#include "base/ids.h"
#include "sample/grammar_matcher.h"

namespace manta::sample {

// Any token may come up to and including the first `token`; behind it `matcher` decides.
std::unique_ptr<GrammarMatcher> after_token(TokenId token, std::unique_ptr<GrammarMatcher> matcher);

}  // namespace manta::sample
