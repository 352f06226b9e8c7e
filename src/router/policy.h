// Which rank gets a request: pure decisions over what the router counts itself (exact) and what the ranks last said.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace manta::router {

enum class Policy { kRoundRobin, kLeastLoaded, kPrefixAffinity };

// "round_robin", "least_loaded", "prefix_affinity", or the last path element of a Ray class name:
// "ray.serve.llm.request_router:PrefixCacheAffinityRouter". kInvalidArgument lists them.
Result<Policy> policy_from_name(std::string_view name);

// All in tokens.
struct Candidate {
  int64_t in_flight = 0;  // prompt and output of what this router sent and has not ended; exact
  int64_t waiting = 0;    // requests queued there, as last heard
  int64_t capacity = 0;   // KV cache; 0: unknown
  int64_t free = 0;       // of it, as last heard
  int64_t cached = 0;     // of this prompt, probably in its prefix cache
};

// A prefill rank computes what it has to compute before this prompt, then this prompt without its cached part.
size_t choose_prefill(Policy policy, std::span<const Candidate> candidates, int64_t num_prompt_tokens, size_t turn);
// A decode rank holds the whole request in its cache until it ends: the emptiest one, by share of its capacity.
// cost: prompt and expected output.
size_t choose_decode(Policy policy, std::span<const Candidate> candidates, int64_t cost, size_t turn);

// A prompt as the hashes of its leading blocks: block i's hash covers tokens [0, (i + 1) * kBlock).
inline constexpr size_t kBlock = 16;
std::vector<uint64_t> prefix_hashes(std::span<const TokenId> tokens, std::string_view salt);

// What one rank's prefix cache holds, as far as the prompts sent there tell. Least recently used first out.
class PrefixMemory {
 public:
  explicit PrefixMemory(size_t max_blocks) : max_blocks_(max_blocks) {}

  size_t match(std::span<const uint64_t> hashes) const;  // leading blocks that it knows
  void insert(std::span<const uint64_t> hashes);
  size_t num_blocks() const { return entries_.size(); }

 private:
  size_t max_blocks_;
  std::list<uint64_t> order_;  // oldest first
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> entries_;
};

}  // namespace manta::router
