// The cuda backend: DeepSeek-V3's stages on one sm_90a GPU. Everybody else sees entry.h; this is for the files that
// define it: cuda_backend.cc (memory, steps, graphs) and stages_*.cc.
//
// Up to kMaxInFlight steps are planned and run before the oldest is finished: tokens, positions and lengths live on the
// device, and one stream orders everything.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "backend/backend.h"
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/prefill.h"
#include "backend/cuda/device_slots.h"
#include "backend/cuda/gemm/block_gemm.h"
#include "backend/cuda/norm/norm.h"
#include "backend/cuda/results.h"
#include "backend/cuda/step_buffers.h"
#include "backend/cuda/weights.h"
#include "backend/host/slot_table.h"
#include "backend/host/step_builder.h"

namespace manta::backend::cuda {

// Inner values of an MLP: as many rows as there is room for.
struct MlpScratch {
  __nv_bfloat16 *gate_up = nullptr, *inner = nullptr;        // [rows, 2 I], [rows, I]
  uint8_t *quantized = nullptr, *quantized_inner = nullptr;  // an input of a product in FP8, and inner likewise
  float *scales = nullptr, *inner_scales = nullptr;
};

// What stages leave for each other inside one microbatch, and inner values of a stage.
struct Scratch : MlpScratch {
  __nv_bfloat16 *normed = nullptr, *normed_low = nullptr;  // [T, D]
  __nv_bfloat16* q_a = nullptr;                            // [T, q_lora_rank]
  __nv_bfloat16* q = nullptr;                              // [T, H * (nope + rope)]
  __nv_bfloat16* queries = nullptr;                        // [T, H * (C + rope)]
  float* kv_a = nullptr;                                   // [T, C + rope]
  __nv_bfloat16* latent_out = nullptr;                     // [T, H * C]
  __nv_bfloat16* attn_out = nullptr;                       // [T, H * v]
  int4* mla_items = nullptr;                               // the step's plan: plan_mla
  int2* mla_pieces = nullptr;
  float *partial_out = nullptr, *partial_lse = nullptr;  // of rows in pieces
  float* gate_logits = nullptr;                          // [2 * gate_pieces(D), T, E]
  __nv_bfloat16* mtp_pair = nullptr;                     // [T, 2 D]
};

// Rows that a group of scales has room for: the copy engine takes 16 bytes at a time.
inline int64_t scale_rows(int64_t num_rows) {
  return (num_rows + 3) / 4 * 4;
}

// Into how many pieces of whole scale blocks the router's product is cut along k.
inline int gate_pieces(int hidden_size) {
  return hidden_size % 1024 == 0 ? 8 : 1;
}

struct StageLane : CudaLane {
  using CudaLane::CudaLane;
  ~StageLane() override {
    if (side != nullptr) cudaStreamDestroy(side);
  }
  DeviceMemory memory;
  Scratch scratch;
  // Small kernels that need not wait for each other run beside the stream, between fork and join.
  cudaStream_t side = nullptr;
  Event forked, joined;
  // The shared expert runs beside everything from the router to merge, with inner values of its own, once the experts'
  // norm has left its input: see route.
  struct {
    MlpScratch scratch;
    Event input_made;
    bool has_input = false;
  } shared;
};

class CudaActivations : public Activations {
 public:
  Status allocate(const ModelShape& shape, const Limits& limits);
  static size_t num_bytes(const ModelShape& shape, const Limits& limits);
  DeviceMemory memory;
};

class CudaBackend : public Backend {
 public:
  static constexpr int kMaxInFlight = 2;

  // kUnavailable when there is no driver, no device, or one that is not sm_90. Takes nothing from the GPU.
  static Status probe();
  static Result<std::unique_ptr<Backend>> make(const BackendOptions& options);
  ~CudaBackend() override;

  const Caps& caps() const override { return caps_; }
  Status init(const ModelShape& shape, const Limits& limits) override;
  Result<PackedWeightPtr> pack(const WeightView& weight, WeightRole role) override {
    return pack_weight(weight, role, shape_);
  }
  DeviceMemoryBytes device_memory() const override;
  size_t workspace_bytes() const override;
  Status make_cache(const kv::CacheGeometry& geometry) override;
  KvLayer cache_layer(int layer) override { return cache_.at(layer); }
  void write_cache(void* to, const void* from, size_t num_bytes) override;
  Result<std::unique_ptr<Activations>> make_activations() override;
  Lane& lane(int microbatch) override { return *lanes_.at(microbatch); }
  Result<std::unique_ptr<ep::ExpertTransport>> make_transport(const ep::TransportOptions& options) override;

  Status plan(const StepInputs& inputs, std::vector<StepView>& microbatches) override;
  Status run(const GraphKey* key, std::span<const StepView> microbatches, const DriverFn& driver) override;
  Result<StepOutputs> finish() override;

  void gather_inputs(Lane&, const StepView&) override;
  void embed(Lane&, const StepView&, const PackedWeight& embedding, Hidden& out) override;
  void attn_project(Lane&, const StepView&, const AttnWeights&, Hidden&, KvLayer&, Activations&) override;
  void attn_attend(Lane&, const StepView&, const AttnWeights&, const KvLayer&, Activations&, Hidden&) override;
  void dense_mlp(Lane&, const StepView&, const PackedWeight& norm, const MlpWeights&, Activations&, Hidden&) override;
  void route(Lane&, const StepView&, int layer, const PackedWeight& norm, const GateWeights&, const ep::ExpertMap&,
             Activations&, Hidden&) override;
  void shared_expert(Lane&, const StepView&, const MlpWeights&, Activations&) override;
  void experts(Lane&, const ExpertWeights&, ep::ExpertBatch&) override;
  void merge(Lane&, const StepView&, const Activations&, Hidden&) override;
  void head(Lane&, const StepView&, const HeadWeights&, Activations&, Hidden&) override;
  void sample(Lane&, const StepView&, Activations&) override;
  void mtp_input(Lane&, const StepView&, const PackedWeight& embedding, const MtpWeights&, Activations&) override;
  void mtp_draft(Lane&, const StepView&, const PackedWeight& norm, const HeadWeights&, Activations&) override;

 private:
  // An input of linear layers: bf16 rows, and the same in FP8 where that was asked for.
  struct Operand {
    const __nv_bfloat16* x = nullptr;
    int64_t stride = 0;
    const uint8_t* q = nullptr;
    const float* scale = nullptr;  // of scale_rows(rows)
  };
  struct Output {
    void* data = nullptr;
    int64_t stride = 0;
    bool f32 = false;
  };
  struct Graph {
    cudaGraphExec_t exec = nullptr;
    bool warm = false;  // its step ran eagerly once
  };
  struct ExpertWindow;

  CudaBackend(const BackendOptions& options, const cudaDeviceProp& device);
  Status init_lane(StageLane& lane);
  bool plans_attention() const { return mla_takes(shape_.kv_lora_rank, shape_.qk_rope_head_dim, geometry_.block_size); }
  // Rows of expanded keys and values that fit the memory of absorbed queries and results: prefill expands there once
  // the absorbed rows of a step are done. 0: no expanding.
  int max_prefill_rows() const;
  void attend_absorbed(StageLane& lane, const StepView& view, const AttnWeights& w, const KvLayer& cache);
  void attend_passes(StageLane& lane, const StepView& view, const AttnWeights& w, const KvLayer& cache);
  void rotate_and_absorb(StageLane& lane, const StepView& view, const AttnWeights& w);
  int64_t inner_rows() const;  // rows of experts that a pass takes
  Status attach_expert_map(const ep::ExpertMap& map);
  Status sync_expert_map();
  Status fetch_results();
  Status capture(Graph& graph, std::span<const StepView> microbatches, const DriverFn& driver);
  bool takes_fp8(const MatrixWeight& w) const { return quantize_ && w.is_fp8; }

  // Norm of rows [0, n): h is added up and left in residual. FP8 only where a consumer takes it.
  void add_norm(StageLane& lane, Hidden& h, int num_rows, const PackedWeight& norm, bool fp8, bool low,
                __nv_bfloat16* out);
  // What `calls` enqueue runs beside the stream, behind `after`, until join().
  template <typename Calls>
  void beside(StageLane& l, const Event& after, Calls&& calls) {
    cudaStreamWaitEvent(l.side, after.get());
    std::swap(l.stream, l.side);
    calls();
    std::swap(l.stream, l.side);
    cudaEventRecord(l.joined.get(), l.side);
  }
  void join(StageLane& l) { cudaStreamWaitEvent(l.stream, l.joined.get()); }
  template <typename Calls>
  void with_shared_scratch(StageLane& l, Calls&& calls) {
    std::swap(static_cast<MlpScratch&>(l.scratch), l.shared.scratch);
    calls();
    std::swap(static_cast<MlpScratch&>(l.scratch), l.shared.scratch);
  }
  Operand quantized(StageLane& lane, const __nv_bfloat16* x, int64_t stride, int num_rows, int d);
  // Products with one input; the outputs of several weights of one shape stand side by side.
  void linear(StageLane& lane, const Operand& in, std::initializer_list<const MatrixWeight*> weights, int num_rows,
              const Output& out);
  void mlp(StageLane& lane, const Operand& in, const MlpWeights& w, int num_rows, __nv_bfloat16* out);
  void expert_window(StageLane& lane, const ExpertWeights& weights, const ep::ExpertBatch& batch,
                     const ExpertWindow& window);
  void logits_of(StageLane& lane, const __nv_bfloat16* normed, const int32_t* rows, int num_rows, __nv_bfloat16* chosen,
                 const PackedWeightPtr& head, const Tensor& logits);

  ModelShape shape_;
  Limits limits_;
  Caps caps_;
  const bool quantize_;
  const int num_multiprocessors_;
  cudaStream_t stream_ = nullptr;
  std::vector<std::unique_ptr<StageLane>> lanes_;
  size_t lane_bytes_ = 0;
  DeviceMemory tables_;  // rope
  float *cos_ = nullptr, *sin_ = nullptr;

  kv::CacheGeometry geometry_;
  DeviceMemory cache_memory_;
  std::vector<KvLayer> cache_;

  // Steps.
  std::optional<host::SlotTable> table_;
  std::optional<host::StepBuilder> builder_;
  DeviceSlots slots_;
  std::vector<std::unique_ptr<StepBuffers>> buffers_;  // by microbatch
  Upload upload_;
  std::vector<StepView> host_views_, planned_views_;
  StepResults results_[kMaxInFlight];
  std::mutex mutex_;  // of in_flight_ and fault_: finish() may come from another thread
  std::deque<StepResults*> in_flight_;
  StepResults* planned_results_ = nullptr;
  std::atomic<bool> planned_ = false;  // planned, not run
  int next_results_ = 0;
  std::map<GraphKey, Graph> graphs_;
  std::optional<Error> fault_;
  void fault(Error error) {
    const std::lock_guard lock(mutex_);
    if (!fault_) fault_ = std::move(error);
  }

  // The expert map as the device has it. Its memory comes with the first step that routes.
  const ep::ExpertMap* map_ = nullptr;
  ep::ExpertMap shadow_;
  DeviceMemory map_memory_;
  int32_t *logical_to_physical_ = nullptr, *replica_count_ = nullptr, *load_ = nullptr;
};

}  // namespace manta::backend::cuda
