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
#include "kv/kv_connector_scheduler.h"

namespace manta::transfer {

// The scheduler's half is declared in kv/, because the scheduler may not know this room.
using kv::ExternalMatch;
using kv::HandOff;
using kv::KvConnectorScheduler;

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
