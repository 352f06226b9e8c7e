// NIXL's C ABI (libnixl_capi.so of the nixl wheel), opened at run time: no header, no link-time dependency. Only what
// the connector uses. Every function returns 0 for done, 1 for in progress, a negative number for an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"

namespace manta::transfer {

struct NixlLibrary {
  using Handle = void*;
  static constexpr int kDone = 0;
  static constexpr int kInProgress = 1;
  static constexpr int kDram = 0;
  static constexpr int kVram = 1;
  static constexpr int kRead = 0;

  struct AgentConfig {  // nixl_capi_agent_config_t of NIXL 1.4
    bool enable_progress_thread = true;
    bool enable_listen_thread = false;
    int listen_port = 0;
    int thread_sync = 0;  // none: one thread of ours at a time
    unsigned num_workers = 1;
    uint64_t progress_thread_delay_us = 100'000;  // it waits for events this long; 0 would make it spin on a core
    uint64_t listen_thread_delay_us = 100'000;
    bool capture_telemetry = false;
  };

  int (*create_configured_agent)(const char* name, const AgentConfig* config, Handle* agent);
  int (*destroy_agent)(Handle agent);
  int (*get_plugin_params)(Handle agent, const char* plugin, Handle* mems, Handle* params);
  int (*params_add)(Handle params, const char* key, const char* value);
  int (*destroy_mem_list)(Handle mems);
  int (*destroy_params)(Handle params);
  int (*destroy_backend)(Handle backend);  // the handle; the backend itself is the agent's
  int (*create_backend)(Handle agent, const char* plugin, Handle params, Handle* backend);
  int (*create_opt_args)(Handle* args);
  int (*opt_args_add_backend)(Handle args, Handle backend);
  int (*destroy_opt_args)(Handle args);
  int (*create_reg_dlist)(int memory, Handle* list);
  int (*destroy_reg_dlist)(Handle list);
  int (*reg_dlist_add_desc)(Handle list, uintptr_t address, size_t bytes, uint64_t device, const void* meta,
                            size_t meta_bytes);
  int (*register_mem)(Handle agent, Handle list, Handle args);
  int (*get_local_md)(Handle agent, void** bytes, size_t* num_bytes);
  int (*load_remote_md)(Handle agent, const void* bytes, size_t num_bytes, char** name);
  int (*invalidate_remote_md)(Handle agent, const char* name);
  int (*create_xfer_dlist)(int memory, Handle* list);
  int (*destroy_xfer_dlist)(Handle list);
  int (*xfer_dlist_add_desc)(Handle list, uintptr_t address, size_t bytes, uint64_t device);
  int (*create_xfer_req)(Handle agent, int operation, Handle local, Handle remote, const char* peer, Handle* request,
                         Handle args);
  int (*post_xfer_req)(Handle agent, Handle request, Handle args);
  int (*get_xfer_status)(Handle agent, Handle request);
  int (*release_xfer_req)(Handle agent, Handle request);
  int (*destroy_xfer_req)(Handle request);
  bool (*is_stub)();

  // `path`; when empty: beside this binary (../.deps, lib), then the site-packages of PATH's python. Stays loaded. The
  // error is one line that says what to install.
  static Result<const NixlLibrary*> open(const std::string& path);
};

}  // namespace manta::transfer
