// Cuts text into the words that BPE works on: a sequence of Split patterns, each applied inside the pieces the one
// before it left. Matches and the text between matches both become pieces ("Isolated").
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/split_pattern.h"

namespace manta::text {

class PreTokenizer {
 public:
  using Scratch = SplitPattern::Scratch;

  explicit PreTokenizer(std::vector<SplitPattern> splits) : splits_(std::move(splits)) {}

  // Calls on_word(std::string_view) for each word of text, left to right; together they are the text, none is empty.
  // text must be well-formed UTF-8.
  template <typename OnWord>
  Status for_each_word(std::string_view text, Scratch& scratch, OnWord&& on_word) const {
    return split(0, text, scratch, on_word);
  }

 private:
  template <typename OnWord>
  Status split(size_t stage, std::string_view piece, Scratch& scratch, OnWord& on_word) const {
    if (piece.empty()) return {};
    if (stage == splits_.size()) {
      on_word(piece);
      return {};
    }
    for (size_t pos = 0; pos < piece.size();) {
      MANTA_ASSIGN(const auto match, splits_[stage].find(piece, pos, scratch));
      const size_t begin = match ? match->begin : piece.size();
      const size_t end = match ? match->end : piece.size();
      MANTA_TRY(split(stage + 1, piece.substr(pos, begin - pos), scratch, on_word));
      MANTA_TRY(split(stage + 1, piece.substr(begin, end - begin), scratch, on_word));
      pos = end;
    }
    return {};
  }

  std::vector<SplitPattern> splits_;
};

}  // namespace manta::text
