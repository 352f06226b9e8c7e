// A model on this rank's device: backend, weights, cache, expert transport and the driver that walks the layers. Made
// once, at start; what every part takes is planned before the cache is sized and kept in a ledger.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "ep/expert_map.h"
#include "ep/expert_transport.h"
#include "exec/executor.h"
#include "exec/expert_balancer.h"
#include "exec/expert_placement.h"
#include "model/config.h"
#include "model/driver.h"
#include "model/progress.h"
#include "model/stage_clock.h"
#include "model/weight_source.h"
#include "model/weights.h"
#include "transfer/kv_connector.h"

namespace manta::exec {

struct LocalExecutorOptions {
  std::string model;                 // folder of the checkpoint
  std::string hf_overrides;          // JSON merged over config.json, or empty
  std::string load_format = "auto";  // "auto", or "dummy": weights of the right shape and scale from `seed`
  uint64_t seed = 0;
  std::string device = "cpu";  // "cpu", or "ref": plain loops in float32
  backend::BackendOptions backend;

  int max_num_seqs = 256;
  int max_num_batched_tokens = 2048;
  int max_model_len = 0;  // 0 = what the model was made for
  int block_size = 64;
  int num_speculative_tokens = 0;  // > 0 loads the MTP module
  int num_microbatches = 1;        // 2: room for DBO's second microbatch
  int max_in_flight = 2;

  // Size of the cache: exactly num_blocks, else what fits in cache_bytes, else what the requests of a full engine can
  // use, at most kMaxDefaultCacheBytes and a share of the memory that is available now.
  int num_blocks = 0;
  size_t cache_bytes = 0;
  int num_local_ranks = 1;  // that share this machine's memory
  // Of a device with memory of its own: the share that may be planned, other processes' use included.
  double device_memory_utilization = 0.92;

  // Steps of decode rows alone are padded to the next of these sizes on a device that can capture them; larger ones run
  // as they are. Captured at start and replayed with capture_steps, else run eagerly, with the same bits.
  std::vector<int> capture_sizes;  // ascending; empty: 1, 2, 4, 8, then multiples of 8, 16, 32
  int max_capture_size = 1024;
  bool capture_steps = true;

  int num_redundant_experts = 0;
  bool may_shrink = false;  // the group goes on without a rank: memory is set aside for the experts of one
  EplbOptions eplb;
  ep::TransportOptions transport;  // between EP ranks
  int ep_rank = 0, ep_size = 1;    // size 1 = all experts here; else form_group() must come before the first step
  int max_tokens_per_round = 256;  // of one rank, in dispatch between ranks: a longer step goes in several rounds

  model::ProgressFn progress;  // of loading; may be empty
};

inline constexpr size_t kMaxDefaultCacheBytes = size_t{4} << 30;

class DeviceModel {
 public:
  // Loads the weights. Errors name the file, flag or number that is wrong.
  static Result<std::unique_ptr<DeviceModel>> load(const LocalExecutorOptions& options,
                                                   std::unique_ptr<transfer::KvConnectorWorker> connector);
  ~DeviceModel();
  DeviceModel(const DeviceModel&) = delete;

  const ExecutorInfo& info() const { return info_; }
  int rank() const { return options_.ep_rank; }
  model::StageClock& clock() { return clock_; }
  transfer::KvConnectorWorker* kv_connector() { return connector_.get(); }

  // One step from its inputs to its outputs; waits for the device. `run_layers` is false for steps without rows that
  // no other rank waits for. kAborted: a peer is gone.
  Result<backend::StepOutputs> run(const backend::StepInputs& inputs, bool run_layers);
  // The same in two halves: up to max_started() steps may be started before the oldest is finished, each half in a
  // thread of its own.
  Status start(const backend::StepInputs& inputs, bool run_layers);
  Result<backend::StepOutputs> finish();
  int max_started() const;
  // As Executor::form_group() and abort().
  Status form_group(const ep::EpTopology& topology);
  void abort(Epoch epoch);
  const EplbCounts& eplb() const { return balancer_ ? balancer_->counts() : no_eplb_; }       // between steps
  ep::Traffic traffic() const { return transport_ ? transport_->traffic() : ep::Traffic{}; }  // since it was made

 private:
  class CacheHook;

  DeviceModel(const LocalExecutorOptions& options, std::unique_ptr<transfer::KvConnectorWorker> connector);
  Status load_config();
  Status make_backend();
  Status load_weights();
  Status make_cache();
  Status make_transport();
  Status make_driver();
  void make_placement(std::unique_ptr<model::WeightSource> source);
  int num_blocks_for(size_t bytes) const;
  Result<int> choose_num_blocks() const;
  Status plan(const backend::StepInputs& inputs);
  void choose_capture_sizes();
  Status capture_steps();
  Status run_once(const backend::StepInputs& inputs);
  std::optional<backend::GraphKey> graph_key(const backend::StepInputs& inputs) const;
  Result<size_t> device_cache_bytes() const;
  Status release_all_slots();
  Status place_experts(const ep::EpTopology& topology, const std::vector<int>& there);
  int tokens_per_round() const;

  LocalExecutorOptions options_;
  std::unique_ptr<transfer::KvConnectorWorker> connector_;  // may be null
  ExecutorInfo info_;
  model::StageClock clock_;
  model::ModelConfig config_;
  std::unique_ptr<backend::Backend> backend_;
  ep::ExpertMap experts_;
  ep::MoeShape moe_;
  std::unique_ptr<model::WeightSource> source_;  // kept where experts move
  std::unique_ptr<model::Weights> weights_;
  std::unique_ptr<ep::ExpertTransport> transport_;
  std::vector<std::unique_ptr<backend::Activations>> activations_;
  std::unique_ptr<CacheHook> hook_;
  std::unique_ptr<model::LayerDriver> driver_;
  std::vector<backend::StepView> views_;
  std::vector<int> capture_sizes_;
  backend::DeviceMemoryBytes device_memory_;    // before anything was taken
  std::unique_ptr<ExpertPlacement> placement_;  // of one rank of a group
  std::unique_ptr<ExpertBalancer> balancer_;    // with EPLB
  const EplbCounts no_eplb_;
  std::vector<char> taken_;  // [max_num_seqs] whether the backend has a request in the slot
};

// Memory that a new process could use without swapping: of the machine, or of the cgroup when that has less. 0:
// unknown.
size_t available_memory_bytes();

}  // namespace manta::exec
