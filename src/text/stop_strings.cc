#include "text/stop_strings.h"

#include <fmt/format.h>

#include "text/utf8.h"

namespace manta::text {

Result<std::shared_ptr<const StopStrings>> StopStrings::create(std::vector<std::string> strings) {
  size_t total = 0;
  for (const auto& string : strings) {
    if (string.empty()) return error(ErrorCode::kInvalidArgument, "stop: a stop string cannot be empty");
    if (well_formed_prefix(string) != string.size()) {
      return error(ErrorCode::kInvalidArgument, "stop: a stop string is not UTF-8");
    }
    total += string.size();
  }
  if (total > kMaxTotalBytes) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("stop: {} bytes of stop strings, at most {} are allowed", total, kMaxTotalBytes));
  }
  std::shared_ptr<StopStrings> result(new StopStrings);
  result->strings_ = std::move(strings);
  for (size_t i = 0; i < result->strings_.size(); ++i) result->add(i);
  result->link();
  return std::shared_ptr<const StopStrings>(std::move(result));
}

void StopStrings::add(size_t string_idx) {
  uint32_t node = 0;
  for (const char c : strings_[string_idx]) {
    const auto byte = static_cast<uint8_t>(c);
    uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<uint32_t>(nodes_.size());
      nodes_[node].edges.push_back({byte, next});
      nodes_.push_back({.depth = nodes_[node].depth + 1});
    }
    node = next;
  }
  if (nodes_[node].string_idx < 0) nodes_[node].string_idx = static_cast<int32_t>(string_idx);
}

// Breadth first: a node's fallback is shallower, and so complete before it.
void StopStrings::link() {
  std::vector<uint32_t> order{0};
  for (size_t i = 0; i < order.size(); ++i) {
    const uint32_t node = order[i];
    for (const auto& [byte, next] : nodes_[node].edges) {
      nodes_[next].fallback = node == 0 ? 0 : step(nodes_[node].fallback, byte);
      const int32_t inherited = nodes_[nodes_[next].fallback].string_idx;
      int32_t& own = nodes_[next].string_idx;
      if (inherited >= 0 && (own < 0 || inherited < own)) own = inherited;
      order.push_back(next);
    }
  }
}

uint32_t StopStrings::child(uint32_t node, uint8_t byte) const {
  for (const auto& edge : nodes_[node].edges) {
    if (edge.byte == byte) return edge.node;
  }
  return 0;
}

uint32_t StopStrings::step(uint32_t node, uint8_t byte) const {
  while (true) {
    if (const uint32_t next = child(node, byte); next != 0) return next;
    if (node == 0) return 0;
    node = nodes_[node].fallback;
  }
}

std::optional<size_t> StopMatcher::push(std::string_view text, std::string& out) {
  for (size_t i = 0; i < text.size(); ++i) {
    node_ = strings_->step(node_, static_cast<uint8_t>(text[i]));
    const int32_t found = strings_->nodes_[node_].string_idx;
    if (found < 0) continue;
    held_.append(text.substr(0, i + 1));
    const size_t stop_bytes = strings_->strings_[found].size();
    out.append(held_, 0, include_in_output_ ? held_.size() : held_.size() - stop_bytes);
    held_.clear();
    node_ = 0;
    return static_cast<size_t>(found);
  }
  held_.append(text);
  const size_t num_sure = held_.size() - strings_->nodes_[node_].depth;
  out.append(held_, 0, num_sure);
  held_.erase(0, num_sure);
  return std::nullopt;
}

void StopMatcher::pass(std::string_view text, std::string& out) {
  finish(out);
  out.append(text);
}

void StopMatcher::finish(std::string& out) {
  out.append(held_);
  held_.clear();
  node_ = 0;
}

}  // namespace manta::text
