#include "router/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

namespace manta::router {
namespace {

// The candidate with the least key; equal ones take turns.
template <typename Key>
size_t least(std::span<const Candidate> candidates, size_t turn, Key key) {
  const size_t n = candidates.size();
  size_t best = turn % n;
  for (size_t i = 1; i < n; ++i) {
    const size_t at = (turn + i) % n;
    if (key(candidates[at]) < key(candidates[best])) best = at;
  }
  return best;
}

double used_share(const Candidate& c) {
  if (c.capacity <= 0) return static_cast<double>(c.in_flight);
  // What is on its way is not in the rank's own figure yet, what other routers sent is not in ours.
  return static_cast<double>(std::max(c.in_flight, c.capacity - c.free)) / static_cast<double>(c.capacity);
}

uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ULL + (hash << 6) + (hash >> 2);
  hash *= 0xff51afd7ed558ccdULL;
  return hash ^ (hash >> 33);
}

}  // namespace

Result<Policy> policy_from_name(std::string_view name) {
  const size_t cut = name.find_last_of(":.");
  const std::string_view last = cut == std::string_view::npos ? name : name.substr(cut + 1);
  if (last == "round_robin") return Policy::kRoundRobin;
  if (last == "least_loaded" || last == "PowerOfTwoChoicesRequestRouter") return Policy::kLeastLoaded;
  if (last == "prefix_affinity" || last == "PrefixCacheAffinityRouter") return Policy::kPrefixAffinity;
  return error(ErrorCode::kInvalidArgument,
               fmt::format("router policy \"{}\": must be round_robin, least_loaded or prefix_affinity (or Ray's "
                           "PrefixCacheAffinityRouter, PowerOfTwoChoicesRequestRouter)",
                           name));
}

size_t choose_prefill(Policy policy, std::span<const Candidate> candidates, int64_t num_prompt_tokens, size_t turn) {
  if (policy == Policy::kRoundRobin) return turn % candidates.size();
  return least(candidates, turn, [&](const Candidate& c) {
    const int64_t cached = policy == Policy::kPrefixAffinity ? c.cached : 0;
    return std::tuple(c.in_flight + num_prompt_tokens - cached, c.waiting);
  });
}

size_t choose_decode(Policy policy, std::span<const Candidate> candidates, int64_t cost, size_t turn) {
  if (policy == Policy::kRoundRobin) return turn % candidates.size();
  return least(candidates, turn, [&](const Candidate& c) {
    const bool too_full = c.capacity > 0 && std::max(c.in_flight, c.capacity - c.free) + cost > c.capacity;
    const double saved = policy == Policy::kPrefixAffinity && c.capacity > 0
                             ? static_cast<double>(c.cached) / static_cast<double>(c.capacity)
                             : 0.0;
    return std::tuple(too_full, used_share(c) - saved, c.in_flight, c.waiting);
  });
}

std::vector<uint64_t> prefix_hashes(std::span<const TokenId> tokens, std::string_view salt) {
  std::vector<uint64_t> hashes;
  hashes.reserve(tokens.size() / kBlock);
  uint64_t hash = std::hash<std::string_view>{}(salt);
  for (size_t i = 0; i < tokens.size(); ++i) {
    hash = mix(hash, static_cast<uint64_t>(static_cast<uint32_t>(tokens[i])));
    if ((i + 1) % kBlock == 0) hashes.push_back(hash);
  }
  return hashes;
}

size_t PrefixMemory::match(std::span<const uint64_t> hashes) const {
  size_t n = 0;
  while (n < hashes.size() && entries_.contains(hashes[n])) ++n;
  return n;
}

// From the last block to the first, so that a prefix outlives what hangs on it.
void PrefixMemory::insert(std::span<const uint64_t> hashes) {
  for (size_t i = hashes.size(); i-- > 0;) {
    const auto it = entries_.find(hashes[i]);
    if (it != entries_.end()) {
      order_.splice(order_.end(), order_, it->second);
    } else {
      entries_[hashes[i]] = order_.insert(order_.end(), hashes[i]);
    }
  }
  while (entries_.size() > max_blocks_) {
    entries_.erase(order_.front());
    order_.pop_front();
  }
}

}  // namespace manta::router
