#include "backend/host/host_backend.h"

#include <fmt/format.h>

#include <algorithm>

#include "backend/host/shape_checks.h"

namespace manta::backend::host {
namespace {

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

// Every microbatch's lane is the one team: a CPU has no second stream to overlap with. A transport's copies and sums
// run on it too.
class TeamLane : public Lane {
 public:
  explicit TeamLane(ThreadTeam& team) : team_(team) {}
  void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) override {
    team_.parallel_for(count, grain, [&body](int64_t begin, int64_t end, int) { body(begin, end); });
  }

 private:
  ThreadTeam& team_;
};

int64_t logit_capacity(const Limits& l) {
  return std::max(l.max_num_tokens, l.max_num_seqs);  // mtp_draft needs a row per slice
}

}  // namespace

Status HostActivations::allocate(const ModelShape& s, const Limits& l, DType activation, DType wire) {
  const int64_t t = l.max_num_tokens, d = s.hidden_size, k = s.num_experts_per_tok;
  const auto take = [this](Tensor& out, DType dtype, std::initializer_list<int64_t> shape) -> Status {
    MANTA_ASSIGN(out, memory.allocate("the activations of a step", dtype, shape));
    return {};
  };
  MANTA_TRY(take(hidden.hidden, activation, {t, d}));
  MANTA_TRY(take(hidden.residual, activation, {t, d}));
  MANTA_TRY(take(final_hidden, activation, {t, d}));
  if (s.num_mtp_layers > 0) {
    MANTA_TRY(take(mtp.hidden, activation, {t, d}));
    MANTA_TRY(take(mtp.residual, activation, {t, d}));
  }
  MANTA_TRY(take(moe_input, wire, {t, d}));
  MANTA_TRY(take(topk_id, DType::kI32, {t, k}));
  MANTA_TRY(take(topk_weight, DType::kF32, {t, k}));
  MANTA_TRY(take(combined, DType::kF32, {t, d}));
  MANTA_TRY(take(shared_out, activation, {t, d}));
  return take(logits, DType::kF32, {logit_capacity(l), s.vocab_size});
}

size_t HostActivations::num_bytes(const ModelShape& s, const Limits& l, DType activation, DType wire) {
  const size_t t = l.max_num_tokens, d = s.hidden_size;
  const size_t streams = s.num_mtp_layers > 0 ? 6 : 4;
  const size_t per_token = d * (streams * dtype_bytes(activation) + dtype_bytes(wire) + sizeof(float)) +
                           s.num_experts_per_tok * (sizeof(int32_t) + sizeof(float));
  const size_t sampled = std::min<size_t>(t, static_cast<size_t>(l.max_num_seqs) * (1 + l.num_speculative_tokens));
  return t * per_token + sampled * s.vocab_size * sizeof(float);
}

HostBackend::HostBackend(int num_threads) : team_(num_threads) {}

Status HostBackend::init(const ModelShape& shape, const Limits& limits) {
  MANTA_TRY(check_shape(shape));
  MANTA_TRY(check_limits(limits, shape));
  shape_ = shape;
  limits_ = limits;
  MANTA_ASSIGN(StepBuilder builder, StepBuilder::make(shape, limits));
  builder_.emplace(std::move(builder));
  sample_stage_.emplace(shape.vocab_size, team_.num_threads());
  lanes_.clear();
  for (int i = 0; i < limits.num_microbatches; ++i) lanes_.push_back(std::make_unique<TeamLane>(team_));
  MANTA_TRY(on_init());
  initialised_ = true;
  return {};
}

size_t HostBackend::workspace_bytes() const {
  return (builder_ ? builder_->num_bytes() : 0) + derived_bytes();
}

Status HostBackend::make_cache(const kv::CacheGeometry& g) {
  if (!initialised_) return error(ErrorCode::kFailedPrecondition, "make_cache before init");
  MANTA_TRY(check_positive("num_blocks", g.num_blocks));
  MANTA_TRY(check_positive("block_size", g.block_size));
  if (g.num_layers != shape_.num_layers() || g.kv_lora_rank != shape_.kv_lora_rank ||
      g.qk_rope_head_dim != shape_.qk_rope_head_dim || g.dtype != caps().cache_dtype) {
    return invalid(fmt::format("a cache of {} layers, rows {} + {} {}: the model on this backend needs {}, {} + {} {}",
                               g.num_layers, g.kv_lora_rank, g.qk_rope_head_dim, to_string(g.dtype),
                               shape_.num_layers(), shape_.kv_lora_rank, shape_.qk_rope_head_dim,
                               to_string(caps().cache_dtype)));
  }
  cache_memory_ = HostMemory();
  cache_.clear();
  for (int layer = 0; layer < g.num_layers; ++layer) {
    KvLayer made;
    const std::initializer_list<int64_t> shape = {g.num_blocks, g.block_size, g.row_size()};
    MANTA_ASSIGN(made.rows, shareable_cache_
                                ? cache_memory_.allocate_shared("the KV cache", g.dtype, shape, made.memory_fd)
                                : cache_memory_.allocate("the KV cache", g.dtype, shape));
    cache_.push_back(made);
  }
  geometry_ = g;
  MANTA_ASSIGN(SlotTable slots, SlotTable::make(shape_, limits_, g));
  slots_.emplace(std::move(slots));
  return {};
}

KvLayer HostBackend::cache_layer(int layer) {
  return cache_.at(layer);
}

Lane& HostBackend::lane(int microbatch) {
  return *lanes_.at(microbatch);
}

Result<std::unique_ptr<ep::ExpertTransport>> HostBackend::make_transport(const ep::TransportOptions& options) {
  ep::TransportOptions chosen = options;
  if (!chosen.layout) chosen.layout = caps().decode_layout;
  return ep::make_transport(chosen);
}

Status HostBackend::plan(const StepInputs& inputs, std::vector<StepView>& microbatches) {
  if (!slots_) return error(ErrorCode::kFailedPrecondition, "plan before make_cache");
  if (in_flight_) return error(ErrorCode::kFailedPrecondition, "plan while a step is in flight: finish() it first");
  MANTA_TRY(slots_->check(inputs));
  MANTA_TRY(builder_->check(inputs));
  slots_->apply(inputs);
  builder_->build(inputs, *slots_, microbatches);
  sample_stage_->begin(inputs, *slots_);
  for (auto& load : expert_load_) std::fill(load.tokens.begin(), load.tokens.end(), 0);
  fault_.reset();
  in_flight_ = true;
  return {};
}

Status HostBackend::run(const GraphKey*, std::span<const StepView> microbatches, const DriverFn& driver) {
  if (!in_flight_) return error(ErrorCode::kFailedPrecondition, "run without a planned step");
  driver(microbatches);
  return {};
}

Result<StepOutputs> HostBackend::finish() {
  if (!in_flight_) return error(ErrorCode::kFailedPrecondition, "finish without a step in flight");
  in_flight_ = false;
  if (fault_) return *fault_;
  StepOutputs out;
  MANTA_ASSIGN(out.slices, sample_stage_->take());
  out.expert_load = expert_load_;
  return out;
}

void HostBackend::gather_inputs(Lane&, const StepView& view) {
  builder_->gather(view, *slots_);
}

void HostBackend::sample(Lane&, const StepView& view, Activations& act) {
  sample_stage_->run(team_, view, builder_->pieces(view.microbatch), act.logits, *slots_);
}

void HostBackend::store_drafts(const StepView& view, const Tensor& logits) {
  sample_stage_->draft(team_, view, logits, *slots_);
}

void HostBackend::count_expert_load(int layer, int num_physical, const StepView& view, const Tensor& topk_id) {
  // Sized by the first step: only the expert map knows how many layers and slots there are.
  while (static_cast<int>(expert_load_.size()) <= layer) {
    expert_load_.push_back({static_cast<int>(expert_load_.size()), std::vector<int32_t>(num_physical, 0)});
  }
  std::vector<int32_t>& tokens = expert_load_[layer].tokens;
  tokens.resize(num_physical, 0);  // a group that lost a rank has other slots
  const int64_t n = view.num_tokens * topk_id.shape[1];
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = topk_id.as<int32_t>()[i];
    if (id >= 0) ++tokens[id];
  }
}

void HostBackend::fault(Error error) {
  if (!fault_) fault_ = std::move(error);
}

}  // namespace manta::backend::host
