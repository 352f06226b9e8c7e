#include "exec/device_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <utility>

#include "base/log.h"
#include "model/loader.h"

namespace manta::exec {
namespace {

constexpr double kDefaultCacheShare = 0.5;  // of the memory that is available once the weights are loaded

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

Status check_options(const LocalExecutorOptions& o) {
  if (o.max_num_seqs < 1 || o.max_num_batched_tokens < 1 || o.block_size < 1 || o.max_in_flight < 1) {
    return invalid(fmt::format("max_num_seqs {}, max_num_batched_tokens {}, block_size {}: must be at least 1",
                               o.max_num_seqs, o.max_num_batched_tokens, o.block_size));
  }
  if (o.num_microbatches < 1 || o.num_microbatches > 2) {
    return invalid(fmt::format("num_microbatches {}: must be 1 or 2", o.num_microbatches));
  }
  if (o.load_format != "auto" && o.load_format != "safetensors" && o.load_format != "dummy") {
    return invalid(fmt::format("load_format {}: must be auto, safetensors or dummy", o.load_format));
  }
  if (o.ep_size < 1 || o.ep_rank < 0 || o.ep_rank >= o.ep_size) {
    return invalid(fmt::format("EP rank {} of {}", o.ep_rank, o.ep_size));
  }
  return {};
}

// The number in a one-line file, or the maximum when there is none ("max").
uint64_t number_in(const char* path) {
  uint64_t value = 0;
  std::ifstream in(path);
  return in >> value ? value : std::numeric_limits<uint64_t>::max();
}

}  // namespace

size_t available_memory_bytes() {
  uint64_t available = 0;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key, unit; meminfo >> key;) {
    uint64_t kib = 0;
    meminfo >> kib;
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const uint64_t limit = number_in("/sys/fs/cgroup/memory.max");
  const uint64_t used = number_in("/sys/fs/cgroup/memory.current");
  if (limit != std::numeric_limits<uint64_t>::max() && used <= limit) available = std::min(available, limit - used);
  return available;
}

// The KV connector sees every layer's rows before and after they are used.
class DeviceModel::CacheHook : public model::LayerHook {
 public:
  explicit CacheHook(transfer::KvConnectorWorker& connector) : connector_(connector) {}
  void before_attention(Lane&, int layer) override { connector_.wait_for_layer(layer); }
  void after_cache_write(Lane&, int layer) override { connector_.layer_done(layer); }

 private:
  transfer::KvConnectorWorker& connector_;
};

DeviceModel::DeviceModel(const LocalExecutorOptions& options, std::unique_ptr<transfer::KvConnectorWorker> connector)
    : options_(options), connector_(std::move(connector)), taken_(options.max_num_seqs) {}

DeviceModel::~DeviceModel() {
  connector_ = nullptr;  // its threads write to the cache, which the backend owns
}

Result<std::unique_ptr<DeviceModel>> DeviceModel::load(const LocalExecutorOptions& options,
                                                       std::unique_ptr<transfer::KvConnectorWorker> connector) {
  MANTA_TRY(check_options(options));
  std::unique_ptr<DeviceModel> model(new DeviceModel(options, std::move(connector)));
  MANTA_TRY(model->load_config());
  MANTA_TRY(model->make_backend());
  MANTA_TRY(model->load_weights());
  MANTA_TRY(model->make_transport());
  MANTA_TRY(model->make_cache());
  MANTA_TRY(model->make_driver());
  MANTA_TRY(model->capture_steps());
  return model;
}

Status DeviceModel::load_config() {
  MANTA_ASSIGN(config_, model::load_config(options_.model, options_.hf_overrides));
  if (options_.num_speculative_tokens > 0) MANTA_TRY(model::enable_mtp(config_));
  const int most = config_.shape.max_position_embeddings;
  if (options_.max_model_len == 0) options_.max_model_len = most;
  if (options_.max_model_len < 2 || options_.max_model_len > most) {
    return invalid(fmt::format("max_model_len {}: must be in [2, {}] (max_position_embeddings of {})",
                               options_.max_model_len, most, options_.model));
  }
  return {};
}

Status DeviceModel::make_backend() {
  MANTA_ASSIGN(backend_, backend::make_backend(options_.device, options_.backend));
  device_memory_ = backend_->device_memory();
  backend::Limits limits;
  limits.max_num_seqs = options_.max_num_seqs;
  limits.max_num_tokens = options_.max_num_batched_tokens;
  limits.max_model_len = options_.max_model_len;
  limits.num_speculative_tokens = options_.num_speculative_tokens;
  limits.num_microbatches = options_.num_microbatches;
  MANTA_TRY(backend_->init(config_.shape, limits));
  info_.max_num_seqs = options_.max_num_seqs;
  info_.max_num_batched_tokens = options_.max_num_batched_tokens;
  info_.max_model_len = options_.max_model_len;
  info_.vocab_size = config_.shape.vocab_size;
  info_.num_speculative_tokens = options_.num_speculative_tokens;
  info_.max_in_flight = options_.max_in_flight;
  info_.device = backend_->caps().description;
  if (options_.backend.batch_invariant && !backend_->caps().batch_invariant) {
    spdlog::warn("batch_invariant: {} does not keep it yet; the last bits of a row may depend on the batch it is in",
                 backend_->caps().name);
  }
  info_.pads_steps = backend_->caps().can_capture;
  info_.memory.push_back({"activations", backend_->workspace_bytes()});
  return {};
}

Status DeviceModel::load_weights() {
  if (const int rows = model::num_moe_rows(config_.shape); rows > 0) {
    MANTA_ASSIGN(experts_, ep::linear_expert_map(rows, config_.shape.n_routed_experts, options_.num_redundant_experts,
                                                 options_.ep_size, Epoch{}));
  }
  std::unique_ptr<model::WeightSource> source;
  if (options_.load_format == "dummy") {
    source = model::make_dummy_weights(config_, options_.seed, backend_->caps().makes_random_weights);
  } else {
    MANTA_ASSIGN(source, model::open_checkpoint(options_.model, config_));
  }
  model::LoadOptions load;
  load.experts = {&experts_, options_.ep_rank, options_.ep_size};
  load.num_threads = options_.backend.num_threads;
  load.progress = options_.progress;
  MANTA_ASSIGN(weights_, model::load_weights(config_, *source, *backend_, load));
  info_.memory.push_back({"weights", weights_->num_bytes});
  if (options_.ep_size > 1 && experts_.num_layers > 0) make_placement(std::move(source));
  return {};
}

void DeviceModel::make_placement(std::unique_ptr<model::WeightSource> source) {
  source_ = std::move(source);
  std::vector<int> layer_of_row(experts_.num_layers, -1);
  for (int layer = 0; layer < config_.shape.num_layers(); ++layer) {
    if (const int row = model::moe_row(config_.shape, layer); row >= 0) layer_of_row[row] = layer;
  }
  const auto load = [this, layer_of_row](int row, int logical) {
    return model::load_expert(config_, *source_, *backend_, layer_of_row[row], logical);
  };
  const auto slots = [this, layer_of_row](int row) -> std::vector<backend::MlpWeights>& {
    return weights_->layers[layer_of_row[row]].experts.local;
  };
  ExpertPlacement::Parts parts;
  parts.rank = options_.ep_rank;
  parts.size = options_.ep_size;
  parts.load = [this, load, layer_of_row](int row, int logical) {
    clock_.enter(layer_of_row[row], "load_experts");  // getting on, which may take long: nobody should call it stuck
    return load(row, logical);
  };
  parts.put = [slots](int row, int slot, backend::MlpWeights weights) { slots(row)[slot] = std::move(weights); };
  parts.resize = [slots](int row, int num_slots) { slots(row).resize(num_slots); };
  placement_ = std::make_unique<ExpertPlacement>(experts_, std::move(parts));
  size_t layer_bytes = 0;  // of this rank's experts
  for (const backend::MlpWeights& w : slots(0)) {
    layer_bytes += w.gate_proj->num_bytes() + w.up_proj->num_bytes() + w.down_proj->num_bytes();
  }
  const int num_slots = placement_->num_slots(options_.ep_size);
  const int num_more = options_.may_shrink ? placement_->num_slots(options_.ep_size - 1) - num_slots : 0;
  if (num_more > 0) {
    info_.memory.push_back({"experts of a missing rank", layer_bytes / num_slots * num_more * experts_.num_layers});
  }
  if (!options_.eplb.enabled) return;
  const auto put = [this](const ep::ExpertMove& move, backend::MlpWeights w) { placement_->put(move, std::move(w)); };
  balancer_ = std::make_unique<ExpertBalancer>(options_.eplb, experts_, config_.shape.n_group, load, put);
  info_.memory.push_back({"experts on the move", 2 * layer_bytes});  // at most: one layer waits, one is packed
}

Status DeviceModel::make_transport() {
  if (experts_.num_layers == 0) return {};
  MANTA_ASSIGN(transport_, backend_->make_transport(options_.transport));
  moe_.hidden_size = config_.shape.hidden_size;
  moe_.num_experts_per_tok = config_.shape.num_experts_per_tok;
  moe_.num_physical_experts = experts_.num_physical;
  moe_.num_local_experts = experts_.num_physical / options_.ep_size;
  moe_.wire_dtype = backend_->caps().wire_dtype;
  const int tokens = tokens_per_round(), microbatches = options_.num_microbatches;
  info_.memory.push_back({"expert traffic", transport_->buffer_bytes(moe_, tokens, microbatches)});
  if (options_.ep_size == 1) return transport_->configure({}, moe_, tokens, microbatches);
  MANTA_ASSIGN(info_.ep_peer, transport_->listen());
  info_.ep_peer->rank = options_.ep_rank;
  return {};
}

// One rank alone has no rows to wait for, so its step is one round.
int DeviceModel::tokens_per_round() const {
  const int most = options_.max_num_batched_tokens;
  return options_.ep_size == 1 ? most : std::min(most, options_.max_tokens_per_round);
}

Status DeviceModel::form_group(const ep::EpTopology& topology) {
  std::vector<int> there;
  for (const ep::EpPeer& peer : topology.peers) there.push_back(peer.rank);
  const bool one_of_them =
      topology.rank >= 0 && topology.rank < static_cast<int>(there.size()) && there[topology.rank] == options_.ep_rank;
  if (!info_.ep_peer || topology.size != static_cast<int>(there.size()) || !one_of_them) {
    return error(ErrorCode::kFailedPrecondition,
                 fmt::format("a group of ranks {} with this as its number {}: it was started as rank {} of {}",
                             fmt::join(there, ", "), topology.rank, options_.ep_rank, options_.ep_size));
  }
  clock_.enter(-1, "form_group");
  MANTA_TRY(release_all_slots());
  if (balancer_) balancer_->stop();
  Status formed = place_experts(topology, there);
  clock_.end_step();
  return formed;
}

Status DeviceModel::place_experts(const ep::EpTopology& topology, const std::vector<int>& there) {
  moe_.num_local_experts = placement_->num_slots(topology.size);
  moe_.num_physical_experts = moe_.num_local_experts * topology.size;
  MANTA_TRY(transport_->configure(topology, moe_, tokens_per_round(), options_.num_microbatches));
  MANTA_ASSIGN(ep::ExpertMap * whole, placement_->whole());
  if (balancer_) {
    const ep::Exchange exchange{transport_.get(), &backend_->lane(0), moe_,
                                topology.rank,    topology.size,      tokens_per_round()};
    MANTA_TRY(balancer_->agree(exchange, *whole));
  }
  MANTA_TRY(placement_->adopt(there, topology.epoch));
  return balancer_ ? balancer_->formed(topology, topology.size == options_.ep_size) : Status();
}

// After a failed step nobody knows what the slots hold.
Status DeviceModel::release_all_slots() {
  std::vector<SlotId> slots;
  for (size_t slot = 0; slot < taken_.size(); ++slot) {
    if (taken_[slot]) slots.push_back(static_cast<SlotId>(slot));
  }
  if (slots.empty()) return {};
  backend::StepInputs inputs;
  inputs.released = slots;
  MANTA_TRY(plan(inputs));
  return backend_->finish().ok() ? Status{} : Status(error(ErrorCode::kInternal, "the slots could not be released"));
}

int DeviceModel::num_blocks_for(size_t bytes) const {
  const size_t blocks = bytes / info_.geometry.bytes_per_block();
  return static_cast<int>(std::min<size_t>(blocks, std::numeric_limits<int>::max() / options_.block_size));
}

Result<int> DeviceModel::choose_num_blocks() const {
  const int per_request = (options_.max_model_len + options_.block_size - 1) / options_.block_size;
  const size_t block_bytes = info_.geometry.bytes_per_block();
  const bool on_device = device_memory_.total > 0;
  const size_t available = on_device ? 0 : available_memory_bytes();
  int blocks = options_.num_blocks;
  if (blocks == 0 && options_.cache_bytes > 0) blocks = num_blocks_for(options_.cache_bytes);
  if (blocks == 0 && options_.cache_bytes == 0) {
    size_t bound = 0;
    if (on_device) {
      MANTA_ASSIGN(bound, device_cache_bytes());
    } else {
      const auto share = static_cast<size_t>(static_cast<double>(available) * kDefaultCacheShare);
      bound = std::min(kMaxDefaultCacheBytes, share / std::max(1, options_.num_local_ranks));
    }
    blocks = static_cast<int>(std::min<int64_t>(int64_t{per_request} * options_.max_num_seqs, num_blocks_for(bound)));
  }
  if (blocks < per_request) {
    return error(ErrorCode::kResourceExhausted,
                 fmt::format("a cache of {} blocks ({} bytes) cannot hold one request of max_model_len {}, which needs "
                             "{} blocks ({} bytes): give --kv-cache-memory-bytes {} or lower --max-model-len",
                             blocks, blocks * block_bytes, options_.max_model_len, per_request,
                             per_request * block_bytes, per_request * block_bytes));
  }
  if (available > 0 && blocks * block_bytes > available) {
    return error(ErrorCode::kResourceExhausted,
                 fmt::format("a cache of {} blocks takes {} bytes, this machine has {} available: lower "
                             "--kv-cache-memory-bytes",
                             blocks, blocks * block_bytes, available));
  }
  return blocks;
}

// What the ledger leaves of the device. Activations are counted before they are taken.
Result<size_t> DeviceModel::device_cache_bytes() const {
  constexpr size_t kForGraphs = size_t{1} << 30;  // captured steps, and what the driver takes for kernels
  const auto planned =
      static_cast<size_t>(static_cast<double>(device_memory_.total) * options_.device_memory_utilization);
  const size_t others = device_memory_.total - device_memory_.free;
  size_t taken = others + kForGraphs;
  std::string lines = fmt::format("{} by others, {} for graphs", others, kForGraphs);
  for (const auto& line : info_.memory) {
    taken += line.bytes;
    lines += fmt::format(", {} for {}", line.bytes, line.name);
  }
  if (taken < planned) return planned - taken;
  return error(ErrorCode::kResourceExhausted,
               fmt::format("no GPU memory is left for the cache: {} bytes of {} may be planned "
                           "(--gpu-memory-utilization {}), {} are taken ({}): lower --max-num-batched-tokens or "
                           "--max-num-seqs, or raise --gpu-memory-utilization",
                           planned, device_memory_.total, options_.device_memory_utilization, taken, lines));
}

// After everything else, because the cache takes what is left.
Status DeviceModel::make_cache() {
  kv::CacheGeometry& g = info_.geometry;
  g.num_layers = config_.shape.num_layers();
  g.block_size = options_.block_size;
  g.kv_lora_rank = config_.shape.kv_lora_rank;
  g.qk_rope_head_dim = config_.shape.qk_rope_head_dim;
  g.dtype = backend_->caps().cache_dtype;
  MANTA_ASSIGN(g.num_blocks, choose_num_blocks());
  MANTA_TRY(backend_->make_cache(g));
  info_.memory.push_back({"cache", g.total_bytes()});
  if (connector_ == nullptr) return {};
  std::vector<transfer::CacheLayer> layers;
  for (int layer = 0; layer < g.num_layers; ++layer) {
    const backend::KvLayer cache = backend_->cache_layer(layer);
    const auto write = [this](void* to, const void* from, size_t n) { backend_->write_cache(to, from, n); };
    layers.push_back({cache.rows, cache.memory_fd, cache.gpu, write});
  }
  // Where steps are only enqueued, nobody can say when a layer of one is done.
  if (max_started() == 1) hook_ = std::make_unique<CacheHook>(*connector_);
  return connector_->register_cache(g, layers);
}

Status DeviceModel::make_driver() {
  model::DriverParts parts;
  parts.backend = backend_.get();
  parts.config = &config_;
  parts.weights = weights_.get();
  parts.experts = transport_ ? &experts_ : nullptr;
  parts.transport = transport_.get();
  parts.max_tokens_per_round = tokens_per_round();
  parts.clock = &clock_;
  parts.hook = hook_.get();
  for (int i = 0; i < options_.num_microbatches; ++i) {
    MANTA_ASSIGN(auto activations, backend_->make_activations());
    parts.activations.push_back(activations.get());
    activations_.push_back(std::move(activations));
  }
  MANTA_ASSIGN(driver_, model::LayerDriver::make(std::move(parts)));
  return {};
}

Status DeviceModel::plan(const backend::StepInputs& inputs) {
  MANTA_TRY(backend_->plan(inputs, views_));
  for (const SlotId slot : inputs.released) taken_[slot] = false;
  for (const auto& admission : inputs.admitted) taken_[admission.slot] = true;
  return {};
}

int DeviceModel::max_started() const {
  // Peers may fail in the middle of a step.
  return options_.ep_size == 1 ? backend_->caps().max_steps_in_flight : 1;
}

Status DeviceModel::start(const backend::StepInputs& inputs, bool run_layers) {
  const std::optional<backend::GraphKey> key = run_layers ? graph_key(inputs) : std::nullopt;
  backend::StepInputs padded = inputs;
  if (key) padded.padded_num_tokens = key->padded_num_tokens;
  MANTA_TRY(plan(padded));
  // Without layers too: what was planned must be over before the next plan.
  if (!run_layers) return backend_->run(nullptr, views_, [](auto) {});
  return backend_->run(key && options_.capture_steps ? &*key : nullptr, views_,
                       [this](auto microbatches) { driver_->run(microbatches); });
}

Result<backend::StepOutputs> DeviceModel::finish() {
  auto outputs = backend_->finish();
  if (const Status peers = transport_ ? transport_->status() : Status{}; !peers.ok()) {
    return error(ErrorCode::kAborted, peers.error().message);
  }
  return outputs;
}

Result<backend::StepOutputs> DeviceModel::run(const backend::StepInputs& inputs, bool run_layers) {
  MANTA_TRY(start(inputs, run_layers));
  auto outputs = finish();
  if (!balancer_ || !run_layers || !outputs.ok()) return outputs;
  // Between the steps, with the other ranks.
  const Status agreed = balancer_->step(outputs->expert_load);
  if (!transport_->status().ok()) return error(ErrorCode::kAborted, transport_->status().error().message);
  if (!agreed.ok()) return agreed.error();
  return outputs;
}

void DeviceModel::abort(Epoch epoch) {
  if (transport_) transport_->abort(epoch);
}

}  // namespace manta::exec
