// KV connectors carry a request's cache rows between engines. Each has two halves: one beside the scheduler, which
// decides what is fetched and offered, one beside the cache memory, which keeps the leases and moves bytes. They talk
// only through kv::KvActions (scheduler -> worker, in StepPlan) and kv::KvProgress (back, in StepResult).
// Life cycle and the contract with other systems' proxies: kv_transfer_params as vLLM has them (docs/kv-transfer.md).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

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

// One layer's cache: [num_blocks, block_size, row_size].
struct CacheLayer {
  Tensor rows;
  int memory_fd = -1;  // of the file the rows are in, from its start; -1: none
  int gpu = -1;        // whose memory they are in; -1: host memory
  // Host bytes into the rows, behind the steps that were begun and before those to come.
  std::function<void(void* to, const void* from, size_t num_bytes)> write;
};

// One thread at a time, except set_wake.
class KvConnectorWorker {
 public:
  virtual ~KvConnectorWorker() = default;
  // Memory outlives the connector.
  virtual Status register_cache(const kv::CacheGeometry& geometry, std::span<const CacheLayer> layers) = 0;
  // What a peer's cache must be like to be read, by name; complete once the cache is registered. Empty: it reads none.
  virtual std::vector<std::pair<std::string, std::string>> compatibility() const { return {}; }
  // Once the step before is over. The step that brought them may have begun, unless they say before_step.
  virtual void start(const kv::KvActions& actions) = 0;
  virtual void wait_for_layer(int layer) = 0;  // parked; only for requests that load inside the step
  virtual void layer_done(int layer) = 0;      // its rows are written and may be sent
  virtual kv::KvProgress poll() = 0;           // after the forward pass; never waits
  // Called, from any thread, whenever poll() has something new: an engine without tokens to compute parks until then.
  virtual void set_wake(std::function<void()> wake) = 0;
};

}  // namespace manta::transfer
