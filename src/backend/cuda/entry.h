// The door of libmanta_cuda.so. The binary and the library are built together, from one tree; kEntryVersion guards
// against an old file left beside a new binary.
#pragma once

#include "backend/backend.h"

namespace manta::backend::cuda {

inline constexpr int kEntryVersion = 1;
inline constexpr const char* kEntryName = "manta_cuda_backend";
inline constexpr const char* kProbeName = "manta_cuda_probe";
inline constexpr const char* kLibraryName = "libmanta_cuda.so";

// Whether make_backend could work, without taking anything from the GPU. Exported as kProbeName.
using ProbeFn = void(int version, Status& out);
// Fills `out`. Exported as kEntryName.
using EntryFn = void(int version, const BackendOptions& options, Result<std::unique_ptr<Backend>>& out);

}  // namespace manta::backend::cuda
