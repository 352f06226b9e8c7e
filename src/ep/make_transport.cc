#include <fmt/format.h>

#include <thread>

#include "ep/expert_transport.h"

namespace manta::ep {
namespace {

using Clock = std::chrono::steady_clock;

// Holds back what the others sent: a finish half returns no sooner than the delay after its own start half. Ranks start
// a half at about the same time, so that is when their rows would have come over a wire of that latency.
class DelayHandle : public DispatchHandle {
 public:
  explicit DelayHandle(DispatchHandle& of) : inner(of) {}
  DispatchHandle& inner;
  Clock::time_point visible;
};

class DelayTransport : public ExpertTransport {
 public:
  DelayTransport(std::unique_ptr<ExpertTransport> inner, std::chrono::microseconds delay)
      : inner_(std::move(inner)), delay_(delay) {}

  ExpertLayout layout() const override { return inner_->layout(); }
  Result<EpPeer> listen() override { return inner_->listen(); }
  size_t buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const override {
    return inner_->buffer_bytes(shape, max_num_tokens, num_microbatches);
  }
  Status configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                   int num_microbatches) override {
    handles_.clear();
    MANTA_TRY(inner_->configure(topology, shape, max_num_tokens, num_microbatches));
    for (int m = 0; m < num_microbatches; ++m) handles_.push_back(std::make_unique<DelayHandle>(inner_->handle(m)));
    return {};
  }
  DispatchHandle& handle(int microbatch) override { return *handles_.at(microbatch); }
  void dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) override {
    inner_->dispatch_start(lane, start(handle), routed);
  }
  void dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) override {
    inner_->dispatch_finish(lane, finish(handle), batch);
  }
  void combine_start(Lane& lane, DispatchHandle& handle, const ExpertBatch& batch) override {
    inner_->combine_start(lane, start(handle), batch);
  }
  void combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) override {
    inner_->combine_finish(lane, finish(handle), out);
  }
  void abort(Epoch epoch) override { inner_->abort(epoch); }
  Traffic traffic() const override { return inner_->traffic(); }
  Status status() const override { return inner_->status(); }

 private:
  DispatchHandle& start(DispatchHandle& handle) {
    auto& h = static_cast<DelayHandle&>(handle);
    h.visible = Clock::now() + delay_;
    return h.inner;
  }
  DispatchHandle& finish(DispatchHandle& handle) {
    auto& h = static_cast<DelayHandle&>(handle);
    std::this_thread::sleep_until(h.visible);
    return h.inner;
  }

  std::unique_ptr<ExpertTransport> inner_;
  const std::chrono::microseconds delay_;
  std::vector<std::unique_ptr<DelayHandle>> handles_;
};

}  // namespace

std::unique_ptr<ExpertTransport> make_delay_transport(std::unique_ptr<ExpertTransport> inner,
                                                      std::chrono::microseconds delay) {
  return std::make_unique<DelayTransport>(std::move(inner), delay);
}

Result<std::unique_ptr<ExpertTransport>> make_transport(const TransportOptions& options) {
  std::unique_ptr<ExpertTransport> made;
  if (options.kind == "loopback") {
    made = make_loopback_transport(options.layout.value_or(ExpertLayout::kContiguous));
  } else if (options.kind == "shm" || options.kind == "tcp" || options.kind == "auto") {
    MANTA_ASSIGN(made, make_group_transport(options));
  } else {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("expert transport {}: there are loopback, shm, tcp and auto", options.kind));
  }
  if (options.delay.count() > 0) made = make_delay_transport(std::move(made), options.delay);
  return Result<std::unique_ptr<ExpertTransport>>(std::move(made));
}

}  // namespace manta::ep
