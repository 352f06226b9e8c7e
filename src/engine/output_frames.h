// A step's outputs cut so that each part fits a frame: log probabilities of a whole vocabulary are megabytes a token.
#pragma once

#include <cstddef>
#include <vector>

#include "base/frame.h"
#include "engine/messages.h"

namespace manta::engine {

inline constexpr size_t kMaxOutputBytes = kMaxPayloadBytes / 2;

// In order, never empty. A request's prompt_logprobs may be spread over several outputs, of which the last one has
// everything else. max_bytes bounds the estimate of an encoded part, as long as one row of log probabilities is less.
std::vector<Outputs> split_outputs(Outputs outputs, size_t max_bytes = kMaxOutputBytes);

}  // namespace manta::engine
