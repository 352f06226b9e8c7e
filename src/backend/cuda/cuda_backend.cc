#include "backend/cuda/cuda_backend.h"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/loopback.h"
#include "backend/cuda/tensor_map.h"
#include "backend/host/rope.h"
#include "backend/host/shape_checks.h"

namespace manta::backend::cuda {
namespace {

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

int max_blocks_per_seq(const Limits& l, int block_size) {
  return (l.max_model_len + block_size - 1) / block_size;
}

int64_t groups_of(int64_t d) {
  return (d + 127) / 128;
}

Status check_dimensions(const ModelShape& s) {
  const std::pair<const char*, int> dims[] = {{"hidden_size", s.hidden_size},
                                              {"q_lora_rank", s.q_lora_rank},
                                              {"kv_lora_rank", s.kv_lora_rank},
                                              {"qk_nope_head_dim", s.qk_nope_head_dim},
                                              {"qk_rope_head_dim", s.qk_rope_head_dim},
                                              {"v_head_dim", s.v_head_dim},
                                              {"intermediate_size", s.intermediate_size},
                                              {"moe_intermediate_size", s.moe_intermediate_size}};
  for (const auto& [name, value] : dims) {
    if (value % 8 != 0) return invalid(fmt::format("{} {}: must be a multiple of 8 on the cuda backend", name, value));
  }
  if (s.kv_lora_rank > 512) {
    return invalid(fmt::format("kv_lora_rank {}: at most 512 on the cuda backend", s.kv_lora_rank));
  }
  return {};
}

}  // namespace

// ---- memory ------------------------------------------------------------------------------------------------------

Status CudaActivations::allocate(const ModelShape& s, const Limits& l) {
  const int64_t t = l.max_num_tokens, d = s.hidden_size, k = s.num_experts_per_tok;
  const auto take = [this](Tensor& out, DType dtype, std::initializer_list<int64_t> shape) -> Status {
    MANTA_ASSIGN(out, memory.allocate("the activations of a step", dtype, shape));
    return {};
  };
  MANTA_TRY(take(hidden.hidden, DType::kBF16, {t, d}));
  MANTA_TRY(take(hidden.residual, DType::kBF16, {t, d}));
  MANTA_TRY(take(final_hidden, DType::kBF16, {t, d}));
  if (s.num_mtp_layers > 0) {
    MANTA_TRY(take(mtp.hidden, DType::kBF16, {t, d}));
    MANTA_TRY(take(mtp.residual, DType::kBF16, {t, d}));
  }
  MANTA_TRY(take(moe_input, DType::kBF16, {t, d}));
  MANTA_TRY(take(topk_id, DType::kI32, {t, k}));
  MANTA_TRY(take(topk_weight, DType::kF32, {t, k}));
  MANTA_TRY(take(combined, DType::kF32, {t, d}));
  MANTA_TRY(take(shared_out, DType::kBF16, {t, d}));
  return take(logits, DType::kF32, {std::max<int64_t>(t, l.max_num_seqs), s.vocab_size});
}

size_t CudaActivations::num_bytes(const ModelShape& s, const Limits& l) {
  const size_t t = l.max_num_tokens, d = s.hidden_size, streams = s.num_mtp_layers > 0 ? 7 : 5;
  return t * (d * (2 * streams + 4) + s.num_experts_per_tok * 8) +
         std::max<size_t>(t, l.max_num_seqs) * s.vocab_size * sizeof(float);
}

CudaBackend::CudaBackend(const BackendOptions& options, const cudaDeviceProp& device)
    : quantize_(options.fp8_activations == "dynamic"), num_multiprocessors_(device.multiProcessorCount) {
  caps_.name = "cuda";
  caps_.description = fmt::format("cuda ({}, {} multiprocessors{})", device.name, device.multiProcessorCount,
                                  quantize_ ? ", dynamic FP8 activations" : "");
  caps_.cache_dtype = DType::kBF16;
  caps_.wire_dtype = DType::kBF16;
  caps_.can_capture = true;
  caps_.batch_invariant = false;
  caps_.makes_random_weights = true;
  caps_.max_steps_in_flight = kMaxInFlight;
}

CudaBackend::~CudaBackend() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (auto& [key, graph] : graphs_) {
    if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
  }
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Status CudaBackend::probe() {
  int count = 0, major = 0, minor = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess || count == 0) {
    cudaGetLastError();
    return error(ErrorCode::kUnavailable,
                 fmt::format("device cuda: no usable NVIDIA GPU ({}): install a driver for CUDA 13 or later, or give "
                             "--device cpu",
                             code != cudaSuccess ? cudaGetErrorString(code) : "none is visible"));
  }
  MANTA_TRY(check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "the GPU's properties"));
  MANTA_TRY(check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "the GPU's properties"));
  if (major == 9 && minor == 0) return {};
  return error(ErrorCode::kUnavailable,
               fmt::format("device cuda: the GPU has compute capability {}.{}, this build is for 9.0 (H100, H200)",
                           major, minor));
}

Result<std::unique_ptr<Backend>> CudaBackend::make(const BackendOptions& options) {
  if (options.fp8_activations != "none" && options.fp8_activations != "dynamic") {
    return invalid(fmt::format("fp8_activations '{}': must be none or dynamic", options.fp8_activations));
  }
  if (!options.routing_simulation.empty()) {
    return error(ErrorCode::kUnimplemented,
                 fmt::format("moe_routing_simulation_strategy {}: not on the cuda backend yet; ref and cpu have it",
                             options.routing_simulation));
  }
  MANTA_TRY(probe());
  cudaDeviceProp device;
  MANTA_TRY(check_cuda(cudaGetDeviceProperties(&device, 0), "the GPU's properties"));
  std::unique_ptr<CudaBackend> backend(new CudaBackend(options, device));
  MANTA_TRY(check_cuda(cudaStreamCreateWithFlags(&backend->stream_, cudaStreamNonBlocking), "a stream"));
  MANTA_TRY(prepare_tensor_maps());
  MANTA_TRY(check_cuda(static_cast<cudaError_t>(prepare_block_gemm()), "the GEMM kernels"));
  MANTA_TRY(check_cuda(static_cast<cudaError_t>(prepare_mla()), "the attention kernels"));
  MANTA_TRY(check_cuda(static_cast<cudaError_t>(prepare_prefill()), "the prefill kernels"));
  return std::unique_ptr<Backend>(std::move(backend));
}

Status CudaBackend::init(const ModelShape& shape, const Limits& limits) {
  MANTA_TRY(host::check_shape(shape));
  MANTA_TRY(host::check_limits(limits, shape));
  MANTA_TRY(check_dimensions(shape));
  shape_ = shape;
  limits_ = limits;
  MANTA_ASSIGN(host::StepBuilder builder, host::StepBuilder::make(shape, limits));
  builder_.emplace(std::move(builder));
  lanes_.clear();
  lane_bytes_ = 0;
  for (int i = 0; i < limits.num_microbatches; ++i) {
    lanes_.push_back(std::make_unique<StageLane>(stream_));
    MANTA_TRY(init_lane(*lanes_.back()));
    lane_bytes_ += lanes_.back()->memory.num_bytes();
  }
  const host::RopeTable rope(shape, limits.max_model_len);
  const size_t bytes = static_cast<size_t>(limits.max_model_len) * shape.qk_rope_head_dim / 2 * sizeof(float);
  for (auto& [to, from] : {std::pair{&cos_, rope.cos(0)}, std::pair{&sin_, rope.sin(0)}}) {
    MANTA_ASSIGN(void* data, tables_.allocate_bytes("the rotary table", bytes));
    MANTA_TRY(check_cuda(cudaMemcpy(data, from, bytes, cudaMemcpyHostToDevice), "the rotary table"));
    *to = static_cast<float*>(data);
  }
  for (StepResults& results : results_) MANTA_TRY(results.init(limits, shape.vocab_size));
  return upload_.init();
}

int64_t CudaBackend::inner_rows() const {
  // Masked batches have room for more rows than are routed; a pass over all experts at once is much the fastest.
  constexpr int64_t kLeast = 4096, kMost = 16384;
  const int64_t routed = int64_t{limits_.max_num_tokens} * shape_.num_experts_per_tok;
  return std::clamp<int64_t>(4 * routed, kLeast, kMost);
}

Status CudaBackend::init_lane(StageLane& lane) {
  const ModelShape& s = shape_;
  const int64_t t = std::max(limits_.max_num_tokens, limits_.max_num_seqs), d = s.hidden_size;
  const int64_t heads = s.num_attention_heads, width = s.kv_lora_rank + s.qk_rope_head_dim;
  const auto take = [&lane](auto*& out, int64_t n) -> Status {
    MANTA_ASSIGN(void* data, lane.memory.allocate_bytes("scratch of the stages", n * sizeof(*out)));
    out = static_cast<std::remove_reference_t<decltype(out)>>(data);
    return {};
  };
  MANTA_TRY(check_cuda(cudaStreamCreateWithFlags(&lane.side, cudaStreamNonBlocking), "a stream"));
  MANTA_TRY(lane.forked.create());
  MANTA_TRY(lane.joined.create());
  MANTA_TRY(lane.shared.input_made.create());
  Scratch& x = lane.scratch;
  MANTA_TRY(take(x.normed, t * d));
  MANTA_TRY(take(x.q_a, t * s.q_lora_rank));
  MANTA_TRY(take(x.q, t * heads * (s.qk_nope_head_dim + s.qk_rope_head_dim)));
  MANTA_TRY(take(x.queries, t * heads * width));
  MANTA_TRY(take(x.kv_a, t * width));
  MANTA_TRY(take(x.latent_out, t * heads * s.kv_lora_rank));
  MANTA_TRY(take(x.attn_out, t * heads * s.v_head_dim));
  const int64_t extra = num_multiprocessors_;  // items of attention beyond one a row
  MANTA_TRY(take(x.mla_items, t + extra));
  MANTA_TRY(take(x.mla_pieces, t));
  MANTA_TRY(take(x.partial_out, 2 * extra * heads * s.kv_lora_rank));
  MANTA_TRY(take(x.partial_lse, 2 * extra * heads));
  if (s.num_mtp_layers > 0) MANTA_TRY(take(x.mtp_pair, t * 2 * d));
  const bool moe = s.n_routed_experts > 0;
  if (moe) {
    MANTA_TRY(take(x.normed_low, t * d));
    MANTA_TRY(take(x.gate_logits, 2 * gate_pieces(s.hidden_size) * t * s.n_routed_experts));
  }
  const int64_t shared = int64_t{s.moe_intermediate_size} * s.n_shared_experts;
  const int64_t inner = std::max(
      {t * s.intermediate_size, t * shared, t * s.q_lora_rank, moe ? inner_rows() * s.moe_intermediate_size : 0});
  MANTA_TRY(take(x.gate_up, 2 * inner));
  MANTA_TRY(take(x.inner, inner));
  MlpScratch& y = lane.shared.scratch;
  MANTA_TRY(take(y.gate_up, 2 * t * shared));
  MANTA_TRY(take(y.inner, t * shared));
  if (!quantize_) return {};
  MANTA_TRY(take(y.quantized, t * d));
  MANTA_TRY(take(y.scales, scale_rows(t) * groups_of(d)));
  MANTA_TRY(take(y.quantized_inner, t * shared));
  MANTA_TRY(take(y.inner_scales, scale_rows(t) * groups_of(shared)));
  const int64_t widest = std::max<int64_t>({2 * d, s.q_lora_rank, heads * s.v_head_dim});
  const int64_t most = std::max(t * widest, moe ? inner_rows() * d : 0);
  MANTA_TRY(take(x.quantized, most));
  MANTA_TRY(take(x.scales, std::max(scale_rows(t) * groups_of(widest), inner_rows() * groups_of(d))));
  MANTA_TRY(take(x.quantized_inner, inner));
  const int64_t most_rows = std::max(t, moe ? inner_rows() : 0);
  const int64_t dense_groups = groups_of(std::max<int64_t>({s.intermediate_size, shared, s.q_lora_rank}));
  return take(x.inner_scales, std::max(scale_rows(t) * dense_groups, most_rows * groups_of(s.moe_intermediate_size)));
}

DeviceMemoryBytes CudaBackend::device_memory() const {
  DeviceMemoryBytes bytes;
  cudaMemGetInfo(&bytes.free, &bytes.total);
  return bytes;
}

size_t CudaBackend::workspace_bytes() const {
  const int blocks = max_blocks_per_seq(limits_, geometry_.block_size > 0 ? geometry_.block_size : 64);
  const size_t per_microbatch =
      CudaActivations::num_bytes(shape_, limits_) + StepBuffers::num_bytes(shape_, limits_, max_prefill_rows());
  return lane_bytes_ + tables_.num_bytes() + DeviceSlots::num_bytes(shape_, limits_, blocks) +
         per_microbatch * limits_.num_microbatches;
}

Status CudaBackend::make_cache(const kv::CacheGeometry& g) {
  if (!builder_) return error(ErrorCode::kFailedPrecondition, "make_cache before init");
  if (g.num_blocks < 1 || g.block_size < 1 || g.num_layers != shape_.num_layers() ||
      g.kv_lora_rank != shape_.kv_lora_rank || g.qk_rope_head_dim != shape_.qk_rope_head_dim ||
      g.dtype != DType::kBF16) {
    return invalid(
        fmt::format("a cache of {} layers, {} blocks of {}, rows {} + {} {}: the model on cuda needs {} "
                    "layers, rows {} + {} BF16",
                    g.num_layers, g.num_blocks, g.block_size, g.kv_lora_rank, g.qk_rope_head_dim, to_string(g.dtype),
                    shape_.num_layers(), shape_.kv_lora_rank, shape_.qk_rope_head_dim));
  }
  cache_memory_.clear();
  cache_.clear();
  for (int layer = 0; layer < g.num_layers; ++layer) {
    MANTA_ASSIGN(Tensor rows,
                 cache_memory_.allocate("the KV cache", g.dtype, {g.num_blocks, g.block_size, g.row_size()}));
    cache_.push_back({.rows = rows, .gpu = 0});
  }
  geometry_ = g;
  MANTA_ASSIGN(host::SlotTable table, host::SlotTable::make(shape_, limits_, g));
  table_.emplace(std::move(table));
  MANTA_TRY(slots_.init(shape_, limits_, max_blocks_per_seq(limits_, g.block_size)));
  buffers_.clear();
  for (int i = 0; i < limits_.num_microbatches; ++i) {
    buffers_.push_back(std::make_unique<StepBuffers>());
    MANTA_TRY(buffers_.back()->init(shape_, limits_, slots_.block_tables(), max_prefill_rows()));
  }
  return check_cuda(cudaDeviceSynchronize(), "the KV cache");
}

void CudaBackend::write_cache(void* to, const void* from, size_t num_bytes) {
  // From memory that is not page-locked: staged before this returns.
  const cudaError_t code = cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyHostToDevice, stream_);
  if (code != cudaSuccess) fault(check_cuda(code, "rows into the KV cache").error());
}

Result<std::unique_ptr<Activations>> CudaBackend::make_activations() {
  auto act = std::make_unique<CudaActivations>();
  MANTA_TRY(act->allocate(shape_, limits_));
  return std::unique_ptr<Activations>(std::move(act));
}

Result<std::unique_ptr<ep::ExpertTransport>> CudaBackend::make_transport(const ep::TransportOptions& options) {
  if (options.kind == "loopback") return make_device_loopback(options.layout.value_or(caps_.decode_layout));
  return error(ErrorCode::kUnimplemented,
               fmt::format("expert transport '{}': the cuda backend has loopback", options.kind));
}

// ---- steps -------------------------------------------------------------------------------------------------------

Status CudaBackend::plan(const StepInputs& inputs, std::vector<StepView>& microbatches) {
  if (!table_) return error(ErrorCode::kFailedPrecondition, "plan before make_cache");
  {
    const std::lock_guard lock(mutex_);
    if (planned_ || in_flight_.size() >= kMaxInFlight) {
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("plan with {} steps in flight: finish() one first", in_flight_.size()));
    }
  }
  MANTA_TRY(table_->check(inputs));
  MANTA_TRY(builder_->check(inputs));
  table_->apply(inputs);
  builder_->build(inputs, *table_, host_views_);
  MANTA_TRY(slots_.apply(inputs, *table_, upload_, stream_));
  microbatches.resize(host_views_.size());
  for (size_t i = 0; i < host_views_.size(); ++i) {
    microbatches[i] = buffers_[i]->put(inputs, host_views_[i], builder_->pieces(static_cast<int>(i)), *table_, upload_);
  }
  MANTA_TRY(sync_expert_map());
  MANTA_TRY(upload_.flush(stream_));
  StepResults& results = results_[next_results_];
  next_results_ = (next_results_ + 1) % kMaxInFlight;
  results.begin(inputs, *table_);
  planned_views_ = microbatches;
  planned_results_ = &results;
  planned_ = true;
  return {};
}

// The map's values may have changed since the last step; the load starts at zero.
Status CudaBackend::sync_expert_map() {
  if (map_ == nullptr) return {};
  if (map_->logical_to_physical != shadow_.logical_to_physical ||
      map_->logical_replica_count != shadow_.logical_replica_count) {
    shadow_ = *map_;
    upload_.put(logical_to_physical_, shadow_.logical_to_physical.data(), shadow_.logical_to_physical.size());
    upload_.put(replica_count_, shadow_.logical_replica_count.data(), shadow_.logical_replica_count.size());
  }
  const size_t bytes = static_cast<size_t>(map_->num_layers) * map_->num_physical * sizeof(int32_t);
  return check_cuda(cudaMemsetAsync(load_, 0, bytes, stream_), "the experts' load");
}

Status CudaBackend::capture(Graph& graph, std::span<const StepView> microbatches, const DriverFn& driver) {
  std::vector<StepView> bounds;
  for (const StepView& view : microbatches) bounds.push_back(buffers_[view.microbatch]->bounds(view));
  cudaGraph_t captured = nullptr;
  MANTA_TRY(check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "graph capture"));
  driver(bounds);
  MANTA_TRY(check_cuda(cudaStreamEndCapture(stream_, &captured), "graph capture"));
  const cudaError_t code = cudaGraphInstantiate(&graph.exec, captured, 0);
  cudaGraphDestroy(captured);
  return check_cuda(code, "graph instantiation");
}

Status CudaBackend::run(const GraphKey* key, std::span<const StepView> microbatches, const DriverFn& driver) {
  if (!planned_) return error(ErrorCode::kFailedPrecondition, "run without a planned step");
  planned_ = false;
  Graph* graph = key != nullptr ? &graphs_[*key] : nullptr;
  if (graph == nullptr || !graph->warm) {
    // Also the first step of a key: kernels load and the expert map gets its memory outside of a capture.
    driver(microbatches);
    if (graph != nullptr) graph->warm = true;
  } else {
    if (graph->exec == nullptr) MANTA_TRY(capture(*graph, microbatches, driver));
    MANTA_TRY(check_cuda(cudaGraphLaunch(graph->exec, stream_), "a step's graph"));
  }
  return fetch_results();
}

// Behind the step's kernels, before the next step's.
Status CudaBackend::fetch_results() {
  StepResults& results = *planned_results_;
  for (const StepView& view : planned_views_) {
    MANTA_TRY(results.copy(view, *buffers_[view.microbatch], builder_->pieces(view.microbatch), stream_));
  }
  if (map_ != nullptr) MANTA_TRY(results.copy_load(load_, map_->num_layers, map_->num_physical, stream_));
  MANTA_TRY(results.finish_copies(stream_));
  MANTA_TRY(check_cuda(cudaGetLastError(), "a step's kernels"));
  const std::lock_guard lock(mutex_);
  in_flight_.push_back(&results);
  return {};
}

Result<StepOutputs> CudaBackend::finish() {
  const auto oldest = [this]() -> StepResults* {
    const std::lock_guard lock(mutex_);
    return in_flight_.empty() ? nullptr : in_flight_.front();
  };
  StepResults* results = oldest();
  // Only where nothing is in flight may planned_ be looked at: else another thread may be between plan() and run().
  if (results == nullptr && planned_) {  // stages were called one by one
    planned_ = false;
    MANTA_TRY(fetch_results());
    results = oldest();
  }
  if (results == nullptr) return error(ErrorCode::kFailedPrecondition, "finish without a step in flight");
  auto out = results->take();
  const std::lock_guard lock(mutex_);
  in_flight_.pop_front();
  if (fault_) return *fault_;
  return out;
}

}  // namespace manta::backend::cuda
