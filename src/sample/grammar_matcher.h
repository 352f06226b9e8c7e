// Where one request stands in its grammar. The scheduler asks it which tokens may come next and tells it which one
// did; sample/grammar.h makes the real ones. One thread at a time.
#pragma once

#include <cstdint>
#include <span>

#include "base/ids.h"

namespace manta::sample {

class GrammarMatcher {
 public:
  virtual ~GrammarMatcher() = default;
  // Sets bit t of word t / 32 for each token t that may come next; words [ceil(vocab_size / 32)]. False: every token
  // may, and the words mean nothing. When the text is complete the end tokens may come.
  virtual bool fill_bitmask(std::span<uint32_t> words) = 0;
  // False: the token may not come here; nothing changed.
  virtual bool accept(TokenId token) = 0;
  // Takes the last tokens back. At most as many as were accepted.
  virtual void rollback(int num_tokens) = 0;
  // An end token was accepted: nothing may follow.
  virtual bool is_terminated() const = 0;
};

}  // namespace manta::sample
