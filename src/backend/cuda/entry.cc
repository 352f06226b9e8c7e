#include "backend/cuda/entry.h"

#include <fmt/format.h>

#include "backend/cuda/cuda_backend.h"

namespace {

using namespace manta;

Status check_version(int version) {
  if (version == backend::cuda::kEntryVersion) return {};
  return error(ErrorCode::kFailedPrecondition,
               fmt::format("{} is of version {}, this binary needs {}: build both from one tree",
                           backend::cuda::kLibraryName, backend::cuda::kEntryVersion, version));
}

}  // namespace

#define MANTA_EXPORT extern "C" __attribute__((visibility("default")))

MANTA_EXPORT void manta_cuda_probe(int version, Status& out) {
  out = check_version(version);
  if (out.ok()) out = backend::cuda::CudaBackend::probe();
}

MANTA_EXPORT void manta_cuda_backend(int version, const backend::BackendOptions& options,
                                     Result<std::unique_ptr<backend::Backend>>& out) {
  if (const Status status = check_version(version); !status.ok()) {
    out = status.error();
  } else {
    out = backend::cuda::CudaBackend::make(options);
  }
}
