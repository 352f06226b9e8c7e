// All experts on this rank: dispatch sorts rows by expert, combine sums them per token. The rows come in wire dtype and
// the experts' outputs leave in wire dtype, so a deployment of one rank rounds exactly where a larger one does.
#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "ep/combine.h"
#include "ep/expert_transport.h"

namespace manta::ep {

namespace {

constexpr size_t kAlignment = 64;
constexpr int64_t kRowsPerPiece = 64;

// Uninitialised, so that pages of a buffer that never fills are never touched.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t num_bytes)
      : data_(std::aligned_alloc(kAlignment, (num_bytes + kAlignment) / kAlignment * kAlignment)) {}
  void* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
};

struct Sizes {
  int64_t max_tokens = 0;
  int64_t capacity = 0;  // rows of all experts
  size_t row_bytes = 0;
};

class LoopbackHandle : public DispatchHandle {
 public:
  // False: no memory.
  bool allocate(const MoeShape& shape, ExpertLayout layout, const Sizes& sizes);

  Routed routed;
  int64_t num_tokens = 0;
  std::vector<int32_t> row_of;   // [T, top_k] row of the batch; -1: not sent
  std::vector<int32_t> offsets;  // [num_local + 1], contiguous
  std::vector<int32_t> counts;   // [num_local]
  Tensor hidden, output;         // [capacity, D]

 private:
  Buffer hidden_bytes_, output_bytes_;
};

bool LoopbackHandle::allocate(const MoeShape& shape, ExpertLayout layout, const Sizes& sizes) {
  const size_t num_bytes = static_cast<size_t>(sizes.capacity) * sizes.row_bytes;
  hidden_bytes_ = Buffer(num_bytes);
  output_bytes_ = Buffer(num_bytes);
  if (!hidden_bytes_.get() || !output_bytes_.get()) return false;
  const int64_t experts = shape.num_local_experts, d = shape.hidden_size;
  const auto tensor = [&](const Buffer& bytes) {
    return layout == ExpertLayout::kContiguous
               ? make_tensor(bytes.get(), shape.wire_dtype, {sizes.capacity, d})
               : make_tensor(bytes.get(), shape.wire_dtype, {experts, sizes.max_tokens, d});
  };
  hidden = tensor(hidden_bytes_);
  output = tensor(output_bytes_);
  row_of.resize(static_cast<size_t>(sizes.max_tokens) * shape.num_experts_per_tok);
  offsets.assign(experts + 1, 0);
  counts.assign(experts, 0);
  return true;
}

class LoopbackTransport : public ExpertTransport {
 public:
  explicit LoopbackTransport(ExpertLayout layout) : layout_(layout) {}

  ExpertLayout layout() const override { return layout_; }
  size_t buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const override;
  Status configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                   int num_microbatches) override;
  DispatchHandle& handle(int microbatch) override { return *handles_.at(microbatch); }
  void dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) override;
  void dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) override;
  void combine_start(Lane&, DispatchHandle&, const ExpertBatch&) override {}
  void combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) override;
  void abort(Epoch epoch) override;
  Status status() const override;

 private:
  Sizes sizes(const MoeShape& shape, int max_num_tokens) const;
  void assign_rows(LoopbackHandle& h);
  void fault(ErrorCode code, int layer, std::string message);

  const ExpertLayout layout_;
  EpTopology topology_;
  MoeShape shape_;
  Sizes sizes_;
  std::vector<std::unique_ptr<LoopbackHandle>> handles_;
  mutable std::mutex mutex_;  // of fault_: abort() comes from any thread
  std::optional<Error> fault_;
};

Sizes LoopbackTransport::sizes(const MoeShape& shape, int max_num_tokens) const {
  const int64_t tokens = max_num_tokens;
  const int64_t per_token = layout_ == ExpertLayout::kContiguous ? shape.num_experts_per_tok : shape.num_local_experts;
  return {tokens, tokens * per_token, static_cast<size_t>(shape.hidden_size) * dtype_bytes(shape.wire_dtype)};
}

size_t LoopbackTransport::buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const {
  const Sizes s = sizes(shape, max_num_tokens);
  const size_t metadata =
      (static_cast<size_t>(s.max_tokens) * shape.num_experts_per_tok + 2 * shape.num_local_experts + 1) *
      sizeof(int32_t);
  return num_microbatches * (2 * static_cast<size_t>(s.capacity) * s.row_bytes + metadata);
}

Status LoopbackTransport::configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                                    int num_microbatches) {
  const auto bad = [](std::string message) {
    return error(ErrorCode::kInvalidArgument, "loopback: " + std::move(message));
  };
  if (topology.size != 1 || shape.num_local_experts != shape.num_physical_experts) {
    return bad(fmt::format("{} of {} experts on one of {} ranks: it serves a single rank with all experts",
                           shape.num_local_experts, shape.num_physical_experts, topology.size));
  }
  if (shape.wire_dtype != DType::kF32 && shape.wire_dtype != DType::kBF16) {
    return bad(fmt::format("wire dtype {}: F32 or BF16", to_string(shape.wire_dtype)));
  }
  if (shape.hidden_size < 1 || shape.num_experts_per_tok < 1 || shape.num_local_experts < 1 || max_num_tokens < 1 ||
      num_microbatches < 1) {
    return bad(fmt::format("hidden_size {}, top_k {}, {} experts, {} tokens, {} microbatches: each must be 1 or more",
                           shape.hidden_size, shape.num_experts_per_tok, shape.num_local_experts, max_num_tokens,
                           num_microbatches));
  }
  const Sizes s = sizes(shape, max_num_tokens);
  if (s.capacity > INT32_MAX) return bad(fmt::format("{} rows a step: at most {}", s.capacity, INT32_MAX));
  std::vector<std::unique_ptr<LoopbackHandle>> handles;
  for (int i = 0; i < num_microbatches; ++i) {
    handles.push_back(std::make_unique<LoopbackHandle>());
    if (!handles.back()->allocate(shape, layout_, s)) {
      return error(ErrorCode::kResourceExhausted, fmt::format("loopback: no memory for {} bytes of expert rows",
                                                              buffer_bytes(shape, max_num_tokens, num_microbatches)));
    }
  }
  topology_ = topology;
  shape_ = shape;
  sizes_ = s;
  handles_ = std::move(handles);
  const std::lock_guard lock(mutex_);
  fault_.reset();
  return {};
}

// Rows of an expert stand in the order of their tokens, so the batch is the same whatever threads there are.
void LoopbackTransport::assign_rows(LoopbackHandle& h) {
  const int experts = shape_.num_local_experts;
  const int64_t pairs = h.num_tokens * shape_.num_experts_per_tok;
  const int32_t* ids = h.routed.topk_id.as<int32_t>();
  std::fill(h.counts.begin(), h.counts.end(), 0);
  for (int64_t i = 0; i < pairs; ++i) {
    const bool in_range = ids[i] >= 0 && ids[i] < experts;
    if (ids[i] != -1 && !in_range) {
      fault(ErrorCode::kInternal, h.routed.layer, fmt::format("expert {} of {} was routed to", ids[i], experts));
    }
    h.row_of[i] = in_range ? h.counts[ids[i]]++ : -1;  // for now within its expert
  }
  for (int e = 0; e < experts; ++e) h.offsets[e + 1] = h.offsets[e] + h.counts[e];
  if (layout_ == ExpertLayout::kMasked && *std::max_element(h.counts.begin(), h.counts.end()) > sizes_.max_tokens) {
    fault(ErrorCode::kInternal, h.routed.layer, "a token was routed to one expert twice");
    std::fill(h.row_of.begin(), h.row_of.begin() + pairs, -1);
    std::fill(h.counts.begin(), h.counts.end(), 0);
    return;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    if (h.row_of[i] < 0) continue;
    h.row_of[i] +=
        static_cast<int32_t>(layout_ == ExpertLayout::kContiguous ? h.offsets[ids[i]] : ids[i] * sizes_.max_tokens);
  }
}

void LoopbackTransport::dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) {
  auto& h = static_cast<LoopbackHandle&>(handle);
  h.routed = routed;
  h.num_tokens = routed.hidden.shape[0];
  if (h.num_tokens > sizes_.max_tokens) {
    fault(ErrorCode::kInternal, routed.layer, fmt::format("{} tokens, made for {}", h.num_tokens, sizes_.max_tokens));
    h.num_tokens = 0;
  }
  assert(h.num_tokens == 0 || (routed.hidden.dtype == shape_.wire_dtype && routed.hidden.is_contiguous()));
  assign_rows(h);
  const int top_k = shape_.num_experts_per_tok;
  const auto* from = static_cast<const char*>(routed.hidden.data);
  auto* to = static_cast<char*>(h.hidden.data);
  lane.parallel_for(h.num_tokens, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int k = 0; k < top_k; ++k) {
        const int32_t row = h.row_of[t * top_k + k];
        if (row >= 0) std::memcpy(to + row * sizes_.row_bytes, from + t * sizes_.row_bytes, sizes_.row_bytes);
      }
    }
  });
}

void LoopbackTransport::dispatch_finish(Lane&, DispatchHandle& handle, ExpertBatch& batch) {
  auto& h = static_cast<LoopbackHandle&>(handle);
  const int64_t experts = shape_.num_local_experts;
  batch = {};
  batch.layout = layout_;
  batch.hidden = h.hidden;
  batch.output = h.output;
  batch.more = h.routed.more;
  if (layout_ == ExpertLayout::kContiguous) {
    batch.row_offsets = make_tensor(h.offsets.data(), DType::kI32, {experts + 1});
    batch.max_rows = static_cast<int>(h.num_tokens * shape_.num_experts_per_tok);
  } else {
    batch.num_rows = make_tensor(h.counts.data(), DType::kI32, {experts});
    batch.max_rows = static_cast<int>(h.num_tokens);
  }
}

void LoopbackTransport::combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) {
  auto& h = static_cast<LoopbackHandle&>(handle);
  const int top_k = shape_.num_experts_per_tok;
  const float* weights = h.routed.topk_weight.as<float>();
  const auto* outputs = static_cast<const char*>(h.output.data);
  assert(out.dtype == DType::kF32 && out.shape[0] >= h.num_tokens && out.shape[1] == shape_.hidden_size);
  lane.parallel_for(h.num_tokens, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    std::vector<WeightedRow> rows;
    rows.reserve(top_k);
    for (int64_t t = begin; t < end; ++t) {
      rows.clear();
      for (int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
        if (h.row_of[i] >= 0) rows.push_back({weights[i], outputs + h.row_of[i] * sizes_.row_bytes});
      }
      combine_row(rows, shape_.wire_dtype, shape_.hidden_size, out.as<float>() + t * out.stride[0]);
    }
  });
}

void LoopbackTransport::fault(ErrorCode code, int layer, std::string message) {
  const std::lock_guard lock(mutex_);
  if (!fault_) fault_ = error(code, fmt::format("loopback dispatch, MoE layer {}: {}", layer, std::move(message)));
}

void LoopbackTransport::abort(Epoch epoch) {  // there is nobody to wait for
  const std::lock_guard lock(mutex_);
  if (topology_.epoch < epoch && !fault_) {
    fault_ = error(ErrorCode::kAborted,
                   fmt::format("epoch {} is over, {} is the current one", topology_.epoch.value, epoch.value));
  }
}

Status LoopbackTransport::status() const {
  const std::lock_guard lock(mutex_);
  return fault_ ? Status(*fault_) : Status();
}

}  // namespace

std::unique_ptr<ExpertTransport> make_loopback_transport(ExpertLayout layout) {
  return std::make_unique<LoopbackTransport>(layout);
}

}  // namespace manta::ep
