// The reference backend: every stage as plain loops in float32. It is the specification that `cpu` and `cuda` are
// tested against, so it is written to be read; it is fast enough for tests and for the tiny model, not for more.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "base/result.h"

namespace manta::backend::ref {

// fp8_activations "dynamic": the input of every linear that is stored as FP8 is quantised in groups of 128 first, as
// DeepSeek's own kernels do (kv_b_proj is not: absorbed, it never multiplies an activation of that shape).
// batch_invariant false: the unabsorbed form of attention.
Result<std::unique_ptr<Backend>> make_ref_backend(const BackendOptions& options);

}  // namespace manta::backend::ref
