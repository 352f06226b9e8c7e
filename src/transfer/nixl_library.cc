#include "transfer/nixl_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <vector>

namespace manta::transfer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kInWheel = ".nixl_cu13.mesonpy.libs/libnixl_capi.so";
constexpr const char* kAdvice =
    "install it with `pip install --no-deps nixl-cu13==1.4.0`, or name libnixl_capi.so by MANTA_NIXL_LIB";

// Folders that may hold the unpacked wheel. Those of Python environments are found by their shape, no Python is run.
std::vector<fs::path> places() {
  std::vector<fs::path> out;
  std::error_code ec;
  const fs::path binary = fs::read_symlink("/proc/self/exe", ec);
  for (fs::path folder = binary.parent_path(); !ec && folder.has_relative_path(); folder = folder.parent_path()) {
    out.push_back(folder / ".deps/nixl");
    out.push_back(folder / "deps/nixl");
  }
  std::vector<fs::path> prefixes;
  if (const char* venv = std::getenv("VIRTUAL_ENV")) prefixes.emplace_back(venv);
  if (!ec) prefixes.push_back(binary.parent_path().parent_path());
  prefixes.insert(prefixes.end(), {"/usr/local", "/usr"});
  for (const fs::path& prefix : prefixes) {
    for (const auto& entry : fs::directory_iterator(prefix / "lib", ec)) {
      if (!entry.path().filename().string().starts_with("python3")) continue;
      out.push_back(entry.path() / "site-packages");
      out.push_back(entry.path() / "dist-packages");
    }
  }
  return out;
}

Result<std::string> find() {
  for (const fs::path& place : places()) {
    std::error_code ec;
    if (fs::exists(place / kInWheel, ec)) return (place / kInWheel).string();
  }
  return error(ErrorCode::kNotFound, fmt::format("NixlConnector: NIXL is not installed; {}", kAdvice));
}

template <typename F>
bool bind(void* library, const char* name, F*& function, std::string& missing) {
  function = reinterpret_cast<F*>(::dlsym(library, name));
  if (function == nullptr && missing.empty()) missing = name;
  return function != nullptr;
}

}  // namespace

Result<const NixlLibrary*> NixlLibrary::open(const std::string& path) {
  std::string file = path;
  if (file.empty()) {
    MANTA_ASSIGN(file, find());
  }
  // Its UCX looks at these when it is loaded; a user's own values stand. Without them its registration cache grows.
  ::setenv("UCX_RCACHE_MAX_UNRELEASED", "1024", 0);
  ::setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 0);
  // Reads of a GPU's memory by copies on the GPU, also without NVLink, as between engines of one GPU: what UCX would do
  // there goes through the owner's process and a socket.
  ::setenv("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "on", 0);
  void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return error(ErrorCode::kNotFound,
                 fmt::format("NixlConnector: {} cannot be loaded: {}; {}", file, ::dlerror(), kAdvice));
  }
  static NixlLibrary out;  // one per process; the library is never closed
  std::string missing;
#define MANTA_BIND(name) bind(library, "nixl_capi_" #name, out.name, missing)
  MANTA_BIND(create_configured_agent);
  MANTA_BIND(destroy_agent);
  MANTA_BIND(get_plugin_params);
  MANTA_BIND(params_add);
  MANTA_BIND(destroy_mem_list);
  MANTA_BIND(destroy_params);
  MANTA_BIND(create_backend);
  MANTA_BIND(destroy_backend);
  MANTA_BIND(create_opt_args);
  MANTA_BIND(opt_args_add_backend);
  MANTA_BIND(destroy_opt_args);
  MANTA_BIND(create_reg_dlist);
  MANTA_BIND(destroy_reg_dlist);
  MANTA_BIND(reg_dlist_add_desc);
  MANTA_BIND(register_mem);
  MANTA_BIND(get_local_md);
  MANTA_BIND(load_remote_md);
  MANTA_BIND(invalidate_remote_md);
  MANTA_BIND(create_xfer_dlist);
  MANTA_BIND(destroy_xfer_dlist);
  MANTA_BIND(xfer_dlist_add_desc);
  MANTA_BIND(create_xfer_req);
  MANTA_BIND(post_xfer_req);
  MANTA_BIND(get_xfer_status);
  MANTA_BIND(release_xfer_req);
  MANTA_BIND(destroy_xfer_req);
  MANTA_BIND(is_stub);
#undef MANTA_BIND
  if (!missing.empty()) {
    return error(
        ErrorCode::kFailedPrecondition,
        fmt::format("NixlConnector: {} has no {}: not the NIXL this was made for; {}", file, missing, kAdvice));
  }
  if (out.is_stub()) {
    return error(ErrorCode::kFailedPrecondition, fmt::format("NixlConnector: {} is a stub; {}", file, kAdvice));
  }
  return &out;
}

}  // namespace manta::transfer
