#include "backend/cuda/loopback.h"

#include <fmt/format.h>

#include <mutex>
#include <optional>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/moe/route.h"

namespace manta::backend::cuda {
namespace {

class DeviceLoopbackHandle : public ep::DispatchHandle {
 public:
  DeviceMemory memory;
  Dispatch dispatch;
  Tensor hidden, output;
  ep::Routed routed;
};

class DeviceLoopback : public ep::ExpertTransport {
 public:
  explicit DeviceLoopback(ep::ExpertLayout layout) : layout_(layout) {}

  ep::ExpertLayout layout() const override { return layout_; }
  size_t buffer_bytes(const ep::MoeShape& s, int max_num_tokens, int num_microbatches) const override {
    const size_t rows = capacity(s, max_num_tokens) * s.hidden_size * sizeof(uint16_t);
    const size_t metadata =
        (static_cast<size_t>(max_num_tokens) * s.num_experts_per_tok + 2 * s.num_local_experts + 1) * sizeof(int32_t);
    return num_microbatches * (2 * rows + metadata);
  }
  Status configure(const ep::EpTopology& topology, const ep::MoeShape& shape, int max_num_tokens,
                   int num_microbatches) override;
  ep::DispatchHandle& handle(int microbatch) override { return *handles_.at(microbatch); }

  void dispatch_start(Lane& lane, ep::DispatchHandle& handle, const ep::Routed& routed) override {
    auto& h = static_cast<DeviceLoopbackHandle&>(handle);
    h.routed = routed;
    h.dispatch.ids = routed.topk_id.as<int32_t>();
    h.dispatch.num_tokens = static_cast<int>(routed.hidden.shape[0]);
    assign_rows(h.dispatch, stream_of(lane));
    dispatch_rows(h.dispatch, static_cast<const __nv_bfloat16*>(routed.hidden.data), shape_.hidden_size,
                  static_cast<__nv_bfloat16*>(h.hidden.data), stream_of(lane));
  }
  void dispatch_finish(Lane&, ep::DispatchHandle& handle, ep::ExpertBatch& batch) override {
    auto& h = static_cast<DeviceLoopbackHandle&>(handle);
    const int64_t experts = shape_.num_local_experts;
    batch = {};
    batch.layout = layout_;
    batch.hidden = h.hidden;
    batch.output = h.output;
    batch.row_offsets = make_tensor(h.dispatch.offsets, DType::kI32, {experts + 1});
    batch.num_rows = make_tensor(h.dispatch.counts, DType::kI32, {experts});
    batch.max_rows = h.dispatch.num_tokens * (h.dispatch.masked ? 1 : shape_.num_experts_per_tok);
  }
  void combine_start(Lane&, ep::DispatchHandle&, const ep::ExpertBatch&) override {}
  void combine_finish(Lane& lane, ep::DispatchHandle& handle, Tensor out) override {
    auto& h = static_cast<DeviceLoopbackHandle&>(handle);
    combine_rows(h.dispatch, static_cast<const __nv_bfloat16*>(h.output.data), h.routed.topk_weight.as<float>(),
                 shape_.hidden_size, out.as<float>(), stream_of(lane));
  }
  void abort(Epoch epoch) override {  // there is nobody to wait for
    const std::lock_guard lock(mutex_);
    if (topology_.epoch < epoch && !fault_) {
      fault_ = error(ErrorCode::kAborted,
                     fmt::format("epoch {} is over, {} is the current one", topology_.epoch.value, epoch.value));
    }
  }
  Status status() const override {
    const std::lock_guard lock(mutex_);
    return fault_ ? Status(*fault_) : Status();
  }

 private:
  size_t capacity(const ep::MoeShape& s, int max_num_tokens) const {
    return static_cast<size_t>(max_num_tokens) *
           (layout_ == ep::ExpertLayout::kContiguous ? s.num_experts_per_tok : s.num_local_experts);
  }

  const ep::ExpertLayout layout_;
  ep::EpTopology topology_;
  ep::MoeShape shape_;
  std::vector<std::unique_ptr<DeviceLoopbackHandle>> handles_;
  mutable std::mutex mutex_;  // of fault_: abort() comes from any thread
  std::optional<Error> fault_;
};

Status DeviceLoopback::configure(const ep::EpTopology& topology, const ep::MoeShape& shape, int max_num_tokens,
                                 int num_microbatches) {
  if (topology.size != 1 || shape.num_local_experts != shape.num_physical_experts) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("loopback: {} of {} experts on one of {} ranks: it serves a single rank with all experts",
                             shape.num_local_experts, shape.num_physical_experts, topology.size));
  }
  if (shape.wire_dtype != DType::kBF16) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("loopback: wire dtype {}: must be BF16 on the cuda backend", to_string(shape.wire_dtype)));
  }
  handles_.clear();
  const int64_t experts = shape.num_local_experts, d = shape.hidden_size;
  const int64_t rows = static_cast<int64_t>(capacity(shape, max_num_tokens));
  for (int i = 0; i < num_microbatches; ++i) {
    auto h = std::make_unique<DeviceLoopbackHandle>();
    const auto take = [&h](DType dtype, std::initializer_list<int64_t> dims) {
      return h->memory.allocate("expert traffic", dtype, dims);
    };
    const bool masked = layout_ == ep::ExpertLayout::kMasked;
    MANTA_ASSIGN(h->hidden, masked ? take(DType::kBF16, {experts, max_num_tokens, d}) : take(DType::kBF16, {rows, d}));
    MANTA_ASSIGN(h->output, masked ? take(DType::kBF16, {experts, max_num_tokens, d}) : take(DType::kBF16, {rows, d}));
    MANTA_ASSIGN(Tensor counts, take(DType::kI32, {experts}));
    MANTA_ASSIGN(Tensor offsets, take(DType::kI32, {experts + 1}));
    MANTA_ASSIGN(Tensor row_of, take(DType::kI32, {max_num_tokens, shape.num_experts_per_tok}));
    h->dispatch.top_k = shape.num_experts_per_tok;
    h->dispatch.num_experts = shape.num_local_experts;
    h->dispatch.masked = masked;
    h->dispatch.plane = max_num_tokens;
    h->dispatch.counts = counts.as<int32_t>();
    h->dispatch.offsets = offsets.as<int32_t>();
    h->dispatch.row_of = row_of.as<int32_t>();
    handles_.push_back(std::move(h));
  }
  topology_ = topology;
  shape_ = shape;
  const std::lock_guard lock(mutex_);
  fault_.reset();
  return check_cuda(cudaDeviceSynchronize(), "expert traffic");
}

}  // namespace

std::unique_ptr<ep::ExpertTransport> make_device_loopback(ep::ExpertLayout layout) {
  return std::make_unique<DeviceLoopback>(layout);
}

}  // namespace manta::backend::cuda
