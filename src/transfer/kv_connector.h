// KV connectors carry a request's cache rows between engines. Each has two halves: one beside the scheduler, which
// decides and owns leases, one beside the cache memory, which moves bytes. They talk only through kv::KvActions
// (scheduler -> worker, in StepPlan) and kv::KvProgress (back, in StepResult).
// Life cycle and the contract with other systems' proxies: kv_transfer_params as vLLM has them.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "base/ids.h"
#include "base/result.h"
#include "base/tensor.h"
#include "kv/cache_geometry.h"
#include "kv/kv_actions.h"

namespace manta::transfer {

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
  // No side effects; asked again each time the request is considered. nullopt = not known yet, ask again next step.
  virtual Result<std::optional<ExternalMatch>> match(RequestId id, std::span<const TokenId> tokens,
                                                     int num_local_tokens, const std::string& kv_transfer_params) = 0;
  virtual void on_allocated(RequestId id, std::span<const BlockId> blocks, int num_external_tokens) = 0;
  // The rows of tokens [0, num_computed_tokens) are in the cache: announce them to a peer that pulls early.
  virtual void on_computed(RequestId id, std::span<const BlockId> blocks, int num_computed_tokens) = 0;
  virtual kv::KvActions build_actions() = 0;  // once per step, after everything above
  virtual void on_progress(const kv::KvProgress& progress) = 0;
  virtual HandOff on_finished(RequestId id, std::span<const BlockId> blocks, int num_tokens) = 0;
  virtual void on_aborted(RequestId id) = 0;
};

// Executor thread only.
class KvConnectorWorker {
 public:
  virtual ~KvConnectorWorker() = default;
  // layers[i]: [num_blocks, block_size, row_size] of layer i. Memory outlives the connector.
  virtual Status register_cache(const kv::CacheGeometry& geometry, std::span<const Tensor> layers) = 0;
  virtual void start(const kv::KvActions& actions) = 0;  // before the forward pass
  virtual void wait_for_layer(int layer) = 0;            // parked; only for requests that load inside the step
  virtual void layer_done(int layer) = 0;                // its rows are written and may be sent
  virtual kv::KvProgress poll() = 0;                     // after the forward pass; never waits
};

}  // namespace manta::transfer
