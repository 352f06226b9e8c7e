#include "text/marker_buffer.h"

#include <algorithm>

namespace manta::text {

namespace {

// Length of the longest end of text that begins marker without being all of it.
size_t partial_marker(std::string_view text, std::string_view marker) {
  for (size_t length = std::min(text.size(), marker.size() - 1); length > 0; --length) {
    if (text.ends_with(marker.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

std::optional<size_t> MarkerBuffer::take_until(std::span<const std::string_view> markers, std::string& out) {
  size_t first = std::string::npos, found = 0, num_kept = 0;
  for (size_t i = 0; i < markers.size(); ++i) {
    if (const size_t pos = held_.find(markers[i]); pos < first) {
      first = pos;
      found = i;
    }
    num_kept = std::max(num_kept, partial_marker(held_, markers[i]));
  }
  if (first == std::string::npos) {
    out.append(held_, 0, held_.size() - num_kept);
    held_.erase(0, held_.size() - num_kept);
    return std::nullopt;
  }
  out.append(held_, 0, first);
  held_.erase(0, first + markers[found].size());
  return found;
}

std::optional<bool> MarkerBuffer::take_prefix(std::string_view prefix) {
  if (held_.starts_with(prefix)) {
    held_.erase(0, prefix.size());
    return true;
  }
  if (prefix.starts_with(held_)) return std::nullopt;
  return false;
}

}  // namespace manta::text
