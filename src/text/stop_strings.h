// Finds stop strings in text that comes in pieces of any size, and holds back only what may still become one.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace manta::text {

// The strings of one request, as an Aho-Corasick automaton: one step per byte however many strings there are.
// Immutable; the streams of an n > 1 request share it.
class StopStrings {
 public:
  static constexpr size_t kMaxTotalBytes = 1 << 16;

  // kInvalidArgument: an empty string, one that is not UTF-8, or more than kMaxTotalBytes together.
  static Result<std::shared_ptr<const StopStrings>> create(std::vector<std::string> strings);

  const std::vector<std::string>& strings() const { return strings_; }

 private:
  friend class StopMatcher;

  struct Edge {
    uint8_t byte;
    uint32_t node;
  };
  struct Node {
    std::vector<Edge> edges;
    uint32_t fallback = 0;  // longest proper suffix of this node's string that is a node as well
    uint32_t depth = 0;
    int32_t string_idx = -1;  // the first listed of the strings that end here (suffixes included)
  };

  StopStrings() : nodes_(1) {}
  void add(size_t string_idx);
  void link();
  uint32_t child(uint32_t node, uint8_t byte) const;  // 0: none
  uint32_t step(uint32_t node, uint8_t byte) const;

  std::vector<std::string> strings_;
  std::vector<Node> nodes_;
};

// One stream's search. The match that ends first wins; of those that end at the same byte, the first in the request's
// list. The result does not depend on how the text was cut.
class StopMatcher {
 public:
  // include_in_output: whether the stop string itself is part of the output.
  StopMatcher(std::shared_ptr<const StopStrings> strings, bool include_in_output)
      : strings_(std::move(strings)), include_in_output_(include_in_output) {}

  // Appends to out what is sure to be output. Returns the stop string's index once one is found: the stream is over,
  // and nothing may be pushed any more.
  std::optional<size_t> push(std::string_view text, std::string& out);
  // Text in which no stop string counts (min_tokens is not reached): it goes out, with what was held back.
  void pass(std::string_view text, std::string& out);
  // The stream ended in another way: what is held back goes out.
  void finish(std::string& out);

 private:
  std::shared_ptr<const StopStrings> strings_;
  bool include_in_output_;
  uint32_t node_ = 0;
  std::string held_;  // the longest end of the text that begins some stop string
};

}  // namespace manta::text
