#include "backend/backend.h"

#include <fmt/format.h>

#include "backend/cpu/cpu_backend.h"
#include "backend/ref/ref_backend.h"

namespace manta::backend {

Result<std::unique_ptr<Backend>> make_backend(const std::string& name, const BackendOptions& options) {
  if (name == "ref") return ref::make_ref_backend(options);
  if (name == "cpu") return cpu::make_cpu_backend(options);
  return error(ErrorCode::kInvalidArgument, fmt::format("backend '{}': this build has ref and cpu", name));
}

}  // namespace manta::backend
