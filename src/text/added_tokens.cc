#include "text/added_tokens.h"

#include <algorithm>

#include "text/white_space.h"

namespace manta::text {

AddedTokenSet::AddedTokenSet(std::span<const AddedToken> tokens) {
  std::vector<const AddedToken*> sorted;
  for (const auto& token : tokens) {
    if (!token.content.empty()) sorted.push_back(&token);
  }
  const auto by_content = [](const AddedToken* a, const AddedToken* b) { return a->content < b->content; };
  std::stable_sort(sorted.begin(), sorted.end(), by_content);
  for (const auto* token : sorted) {
    rules_.push_back({token->id, token->lstrip, token->rstrip});
    starts_[static_cast<uint8_t>(token->content[0])] = true;
  }
  nodes_.reserve(sorted.size() + 1);
  // Iterative, since a token may be longer than the stack is deep.
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> ranges{{0, sorted.size(), 0}};  // parallel to nodes_
  nodes_.emplace_back();
  for (size_t node = 0; node < nodes_.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    for (; begin < end && sorted[begin]->content.size() == depth; ++begin) {
      nodes_[node].token_idx = static_cast<int32_t>(begin);
    }
    nodes_[node].first_edge = static_cast<uint32_t>(edges_.size());
    while (begin < end) {
      const char byte = sorted[begin]->content[depth];
      size_t group_end = begin;
      while (group_end < end && sorted[group_end]->content[depth] == byte) ++group_end;
      edges_.push_back({static_cast<uint8_t>(byte), static_cast<uint32_t>(nodes_.size())});
      nodes_.emplace_back();
      ranges.push_back({begin, group_end, depth + 1});
      begin = group_end;
    }
    nodes_[node].num_edges = static_cast<uint32_t>(edges_.size()) - nodes_[node].first_edge;
  }
}

AddedTokenSet::Match AddedTokenSet::longest_at(std::string_view text, size_t pos) const {
  Match best;
  uint32_t node = 0;
  for (; pos < text.size(); ++pos) {
    const auto byte = static_cast<uint8_t>(text[pos]);
    const auto* edges = edges_.data() + nodes_[node].first_edge;
    const auto* last = edges + nodes_[node].num_edges;
    const auto* edge = std::lower_bound(edges, last, byte, [](const Edge& e, uint8_t b) { return e.byte < b; });
    if (edge == last || edge->byte != byte) break;
    node = edge->node;
    if (nodes_[node].token_idx >= 0) best = {nodes_[node].token_idx, pos + 1};
  }
  return best;
}

void AddedTokenSet::split(std::string_view text, std::vector<Segment>& out) const {
  size_t done = 0;  // text before it is in a segment
  for (size_t pos = 0; pos < text.size();) {
    const Match match = starts_[static_cast<uint8_t>(text[pos])] ? longest_at(text, pos) : Match{};
    if (match.token_idx < 0) {
      ++pos;
      continue;
    }
    const Rule& rule = rules_[match.token_idx];
    const size_t begin = rule.lstrip ? white_space_before(text, pos, std::min(done, pos)) : pos;
    const size_t end = rule.rstrip ? skip_white_space(text, match.end) : match.end;
    if (done < begin) out.push_back({text.substr(done, begin - done), -1});
    out.push_back({text.substr(begin, end - begin), rule.id});
    done = end;
    pos = match.end;
  }
  if (done < text.size()) out.push_back({text.substr(done), -1});
}

}  // namespace manta::text
