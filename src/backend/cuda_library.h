// Finds and opens libmanta_cuda.so: beside the executable, in ../lib of it, or where the loader looks.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace manta::backend {

// kUnavailable with what was looked for when the library, a driver or a fitting GPU is missing. The library stays open
// for the life of the process.
Result<std::unique_ptr<Backend>> make_cuda_backend(const BackendOptions& options);

// Whether make_cuda_backend would work; takes nothing from the GPU.
Status probe_cuda();

// "auto" -> "cuda" where probe_cuda says so, else "cpu". Others are returned as they are.
std::string resolve_device(const std::string& device);

}  // namespace manta::backend
