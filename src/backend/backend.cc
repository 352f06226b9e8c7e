#include "backend/backend.h"

#include <fmt/format.h>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_library.h"
#include "backend/ref/ref_backend.h"

namespace manta::backend {

Result<std::unique_ptr<Backend>> make_backend(const std::string& name, const BackendOptions& options) {
  if (name == "ref") return ref::make_ref_backend(options);
  if (name == "cpu") return cpu::make_cpu_backend(options);
  if (name == "cuda") return make_cuda_backend(options);
  return error(ErrorCode::kInvalidArgument, fmt::format("backend '{}': must be ref, cpu or cuda", name));
}

}  // namespace manta::backend
