// The cpu backend: the model's stages with the kernels of kernels.h.
//
// Numbers: the residual streams, norms, router, softmax and every sum are float32; what enters a matrix product (and
// the latent cache, the rows on the expert wire, the softmax weights) is rounded to bf16. FP8 weights enter exactly.
// Batch-invariant bit for bit: see kernels.h for how. Without batch_invariant long pieces of prompts take the
// unabsorbed form of attention (unabsorbed.h).
#pragma once

#include <memory>

#include "backend/backend.h"
#include "base/result.h"

namespace manta::backend::cpu {

// fp8_activations: "none" only; ref has "dynamic". num_threads: see ThreadTeam.
// kernels: a name of available_kernels(), empty = the best; for tests.
Result<std::unique_ptr<Backend>> make_cpu_backend(const BackendOptions& options, const std::string& kernels = "");

}  // namespace manta::backend::cpu
