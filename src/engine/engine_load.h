// What one front-end knows of an engine's load, for choosing where the next request goes: its own requests exactly,
// also those the engine has not spoken of yet; everybody else's as of the engine's last word. Counted in tokens that
// hold cache rows, so that ten long prompts weigh more than ten short ones.
#pragma once

#include <compare>
#include <cstdint>

#include "engine/messages.h"

namespace manta::engine {

class EngineLoad {
 public:
  // Smaller is better.
  struct Cost {
    bool would_wait = false;  // for a seat or for blocks
    int64_t num_tokens = 0;   // that the engine works on
    auto operator<=>(const Cost&) const = default;
  };

  void welcomed(const Welcome& welcome);

  // Our requests: sent with so many tokens, heard of for the first time, longer by some, over.
  void sent(int64_t num_tokens);
  void seen(int64_t num_tokens);
  void grew(int64_t num_new_tokens) { num_tokens_ += num_new_tokens; }
  void ended(int64_t num_tokens);  // seen() before

  void heard(const Load& load);

  Cost cost(int64_t num_tokens) const;  // of a request that long
  int num_in_flight() const { return num_in_flight_; }
  int64_t num_tokens_in_flight() const { return num_tokens_; }
  const Load& last_heard() const { return load_; }

 private:
  int64_t block_size_ = 0;  // 0: not welcomed yet
  int max_num_seqs_ = 0;
  int num_in_flight_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_unseen_tokens_ = 0;   // of num_tokens_
  int64_t num_foreign_tokens_ = 0;  // beyond ours, as of the last word
  Load load_;
};

}  // namespace manta::engine
