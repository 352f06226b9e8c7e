// Looks for markers ("</think>", "<｜tool▁sep｜>") in text that comes in pieces: gives out what is sure not to belong
// to one, keeps back what may be the beginning of one. For a handful of short, fixed markers.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace manta::text {

class MarkerBuffer {
 public:
  void append(std::string_view text) { held_.append(text); }

  // Moves the text before the first marker to out, drops that marker and returns its index. Without a marker: moves all
  // that cannot be the beginning of one. Of markers that start at the same place, the first of the list counts.
  std::optional<size_t> take_until(std::span<const std::string_view> markers, std::string& out);

  // The buffer starts with prefix: drops it, true. It cannot become so any more: false. Undecided yet: empty.
  std::optional<bool> take_prefix(std::string_view prefix);

  void take_all(std::string& out) {
    out.append(held_);
    held_.clear();
  }
  bool empty() const { return held_.empty(); }

 private:
  std::string held_;
};

}  // namespace manta::text
