// A backend without arithmetic: it keeps what it is given to pack and writes down the stages it is called for.
#pragma once

#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace manta::model {

struct KeptWeight : backend::PackedWeight {
  size_t num_bytes() const override { return bytes.size() + scale_bytes.size(); }
  backend::WeightRole role{};
  DType dtype{};
  std::vector<int64_t> shape;
  std::string bytes, scale_bytes;
};

class FakeBackend : public backend::Backend {
 public:
  struct Call {
    int microbatch;
    std::string stage;
    int layer = -1;  // of the cache in attention, of the expert map in route and dispatch_start
    bool operator==(const Call&) const = default;
  };
  std::vector<Call> calls;
  std::string refuse_role_of;  // pack fails for a tensor of this size description

  const backend::Caps& caps() const override { return caps_; }
  Status init(const backend::ModelShape&, const backend::Limits&) override { return {}; }
  Result<backend::PackedWeightPtr> pack(const backend::WeightView& weight, backend::WeightRole role) override {
    if (weight.data.describe() == refuse_role_of) return error(ErrorCode::kResourceExhausted, "no room to pack");
    auto kept = std::make_unique<KeptWeight>();
    kept->role = role;
    kept->dtype = weight.data.dtype;
    kept->shape.assign(weight.data.shape.begin(), weight.data.shape.begin() + weight.data.rank);
    kept->bytes = copy(weight.data);
    if (weight.scale_inv.data) kept->scale_bytes = copy(weight.scale_inv);
    return backend::PackedWeightPtr(std::move(kept));
  }
  size_t workspace_bytes() const override { return 0; }
  Status make_cache(const kv::CacheGeometry&) override { return {}; }
  backend::KvLayer cache_layer(int layer) override {
    backend::KvLayer cache;
    cache.rows.shape[0] = layer;  // enough to know it again
    return cache;
  }
  Result<std::unique_ptr<backend::Activations>> make_activations() override {
    return std::make_unique<backend::Activations>();
  }
  Lane& lane(int microbatch) override { return lanes_[microbatch]; }
  Result<std::unique_ptr<ep::ExpertTransport>> make_transport(const ep::TransportOptions&) override {
    return error(ErrorCode::kUnimplemented, "the fake has no transport");
  }
  Status plan(const backend::StepInputs&, std::vector<backend::StepView>&) override { return {}; }
  Status run(const backend::GraphKey*, std::span<const backend::StepView> views,
             const backend::DriverFn& driver) override {
    driver(views);
    return {};
  }
  Result<backend::StepOutputs> finish() override { return backend::StepOutputs{}; }

  using V = backend::StepView;
  using W = backend::PackedWeight;
  using A = backend::Activations;
  using H = backend::Hidden;
  void gather_inputs(Lane&, const V& v) override { note(v, "gather"); }
  void embed(Lane&, const V& v, const W&, H& h) override {
    note(v, "embed");
    h.residual_valid = false;
  }
  void attn_project(Lane&, const V& v, const backend::AttnWeights&, H& h, backend::KvLayer& cache, A&) override {
    note(v, h.residual_valid ? "attn_project+add" : "attn_project", static_cast<int>(cache.rows.shape[0]));
    h.residual_valid = true;
  }
  void attn_attend(Lane&, const V& v, const backend::AttnWeights&, const backend::KvLayer& cache, A&, H&) override {
    note(v, "attn_attend", static_cast<int>(cache.rows.shape[0]));
  }
  void dense_mlp(Lane&, const V& v, const W&, const backend::MlpWeights&, A&, H&) override { note(v, "dense_mlp"); }
  void route(Lane&, const V& v, int layer, const W&, const backend::GateWeights&, const ep::ExpertMap&, A&,
             H&) override {
    note(v, "route", layer);
  }
  void shared_expert(Lane&, const V& v, const backend::MlpWeights&, A&) override { note(v, "shared_expert"); }
  void experts(Lane& lane, const backend::ExpertWeights&, ep::ExpertBatch&) override {
    calls.push_back({lane_number(lane), "experts"});
  }
  void merge(Lane&, const V& v, const A&, H&) override { note(v, "merge"); }
  void head(Lane&, const V& v, const backend::HeadWeights&, A&, H&) override { note(v, "head"); }
  void sample(Lane&, const V& v, A&) override { note(v, "sample"); }
  void mtp_input(Lane&, const V& v, const W&, const backend::MtpWeights&, A& act) override {
    note(v, "mtp_input");
    act.mtp.residual_valid = false;
  }
  void mtp_draft(Lane&, const V& v, const W&, const backend::HeadWeights&, A&) override { note(v, "mtp_draft"); }

  int lane_number(const Lane& lane) const { return static_cast<int>(static_cast<const NumberedLane*>(&lane) - lanes_); }
  void note(const V& v, std::string stage, int layer = -1) { calls.push_back({v.microbatch, std::move(stage), layer}); }

 private:
  struct NumberedLane : Lane {};
  static std::string copy(const Tensor& t) {
    return {static_cast<const char*>(t.data), static_cast<size_t>(t.num_elements()) * dtype_bytes(t.dtype)};
  }
  backend::Caps caps_;
  NumberedLane lanes_[2];
};

}  // namespace manta::model
