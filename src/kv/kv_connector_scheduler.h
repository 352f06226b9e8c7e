// The half of a KV connector that stands beside the scheduler: it decides what is fetched and offered, and owns the
// leases. Declared here because the scheduler calls it and may not know transfer/, where the connectors are.
// Life cycle and the contract with other systems' proxies: kv_transfer_params as vLLM has them.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "base/ids.h"
#include "base/result.h"
#include "kv/kv_actions.h"

namespace manta::kv {

// Tokens another engine already computed for a request.
struct ExternalMatch {
  int num_tokens = 0;        // beyond the local prefix hit; a multiple of block_size or up to the last prompt token
  bool asynchronous = true;  // the request waits, holding its blocks, until KvProgress names it
};

// What becomes of a finished request's blocks.
struct HandOff {
  bool held = false;               // the connector keeps them until KvProgress::sent (or its lease expires)
  std::string kv_transfer_params;  // JSON object for the API response; empty = none
};

// Engine thread only. Never blocks.
class KvConnectorScheduler {
 public:
  virtual ~KvConnectorScheduler() = default;
  // A request arrived; every other call that names it comes later, and on_finished or on_aborted is the last.
  virtual void on_added(RequestId id, const std::string& kv_transfer_params) = 0;
  // No side effects; asked again each time the request is considered. nullopt = not known yet, ask again next step.
  virtual Result<std::optional<ExternalMatch>> match(RequestId id, std::span<const TokenId> tokens,
                                                     int num_local_tokens, const std::string& kv_transfer_params) = 0;
  virtual void on_allocated(RequestId id, std::span<const BlockId> blocks, int num_external_tokens) = 0;
  // The rows of tokens [0, num_computed_tokens) are in the cache: announce them to a peer that pulls early.
  virtual void on_computed(RequestId id, std::span<const BlockId> blocks, int num_computed_tokens) = 0;
  // The request lost its blocks and is computed again: what was announced of it is void from the next actions on.
  virtual void on_preempted(RequestId id) { static_cast<void>(id); }
  virtual KvActions build_actions() = 0;  // once per step, after everything above
  virtual void on_progress(const KvProgress& progress) = 0;
  virtual HandOff on_finished(RequestId id, std::span<const BlockId> blocks, int num_tokens) = 0;
  // Ended without a result. While its load is under way the scheduler keeps the blocks until KvProgress names it.
  virtual void on_aborted(RequestId id) = 0;
};

}  // namespace manta::kv
