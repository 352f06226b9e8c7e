#include "backend/cuda_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "backend/cuda/entry.h"

namespace manta::backend {
namespace {

std::vector<std::string> candidates() {
  std::vector<std::string> names;
  std::error_code code;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", code);
  if (!code) {
    names.push_back(self.parent_path() / cuda::kLibraryName);
    names.push_back(self.parent_path().parent_path() / "lib" / cuda::kLibraryName);
  }
  names.emplace_back(cuda::kLibraryName);
  return names;
}

struct Library {
  cuda::ProbeFn* probe = nullptr;
  cuda::EntryFn* make = nullptr;
};

Result<Library> open_library() {
  std::string tried;
  for (const std::string& name : candidates()) {
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      tried += fmt::format("\n  {}", dlerror());
      continue;
    }
    Library library;
    library.probe = reinterpret_cast<cuda::ProbeFn*>(dlsym(handle, cuda::kProbeName));
    library.make = reinterpret_cast<cuda::EntryFn*>(dlsym(handle, cuda::kEntryName));
    if (library.probe != nullptr && library.make != nullptr) return library;
    tried += fmt::format("\n  {} lacks {} or {}", name, cuda::kProbeName, cuda::kEntryName);
    dlclose(handle);
  }
  return error(ErrorCode::kUnavailable,
               fmt::format("device cuda: {} was not found (./dev build cuda makes it):{}", cuda::kLibraryName, tried));
}

const Result<Library>& library() {
  static const Result<Library> opened = open_library();
  return opened;
}

}  // namespace

Status probe_cuda() {
  if (!library().ok()) return library().error();
  Status status;
  library()->probe(cuda::kEntryVersion, status);
  return status;
}

Result<std::unique_ptr<Backend>> make_cuda_backend(const BackendOptions& options) {
  if (!library().ok()) return library().error();
  Result<std::unique_ptr<Backend>> backend = error(ErrorCode::kInternal, "the cuda library gave no answer");
  library()->make(cuda::kEntryVersion, options, backend);
  return backend;
}

std::string resolve_device(const std::string& device) {
  if (device != "auto") return device;
  return probe_cuda().ok() ? "cuda" : "cpu";
}

}  // namespace manta::backend
