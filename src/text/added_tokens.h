// Tokens that are found in the text as they stand, before pre-tokenization: "<｜User｜>", "<think>", …
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"

namespace manta::text {

// As tokenizer.json's "added_tokens" has it.
struct AddedToken {
  TokenId id = -1;
  std::string content;
  bool lstrip = false;  // takes the white space before it along
  bool rstrip = false;  // takes the white space behind it along
  bool normalized =
      false;             // looked for after the other ones (and after normalization, which this tokenizer has none of)
  bool special = false;  // left out of the text by skip_special_tokens
};

// A set of added tokens, searched all at once. Leftmost match first, the longest of those that start there. A search
// costs at most the length of the longest token per byte of text.
class AddedTokenSet {
 public:
  explicit AddedTokenSet(std::span<const AddedToken> tokens);

  struct Segment {
    std::string_view text;
    TokenId id = -1;  // -1: text between added tokens
  };
  // Appends the segments of text, left to right. Plain segments are never empty. An rstrip token may take white space
  // that the token behind it starts with; that token is still found, as in Hugging Face `tokenizers`.
  void split(std::string_view text, std::vector<Segment>& out) const;

 private:
  struct Node {
    uint32_t first_edge = 0, num_edges = 0;
    int32_t token_idx = -1;
  };
  struct Edge {
    uint8_t byte;
    uint32_t node;
  };
  struct Match {
    int32_t token_idx = -1;
    size_t end = 0;
  };
  struct Rule {
    TokenId id;
    bool lstrip, rstrip;
  };

  Match longest_at(std::string_view text, size_t pos) const;

  std::vector<Node> nodes_;  // a byte trie; nodes_[0] is its root
  std::vector<Edge> edges_;
  std::vector<Rule> rules_;
  std::array<bool, 256> starts_{};  // bytes some token starts with
};

}  // namespace manta::text
