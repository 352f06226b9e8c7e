// The ranges of sampling_params.h, checked: where requests enter, and again where a slot is admitted, because a token
// id out of range would be a write out of bounds there.
#pragma once

#include "base/result.h"
#include "sample/sampling_params.h"

namespace manta::sample {

// The first problem, with the value and the bound; names are those of the request's JSON.
Status validate(const SamplingParams& params, int vocab_size);

}  // namespace manta::sample
