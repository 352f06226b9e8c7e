#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "ep/expert_transport.h"
#include "ep/group/group_transport.h"

namespace manta::ep {
namespace {

using Clock = std::chrono::steady_clock;

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
    MANTA_TRY(inner_->configure(topology, shape, max_num_tokens, num_microbatches));
    started_.assign(num_microbatches, {});
    const std::lock_guard lock(mutex_);
    epoch_ = topology.epoch;
    return {};
  }
  DispatchHandle& handle(int microbatch) override { return inner_->handle(microbatch); }
  void dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) override {
    inner_->dispatch_start(lane, handle, routed);
    started(handle) = Clock::now();
  }
  void dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) override {
    wait_for_rows(handle);
    inner_->dispatch_finish(lane, handle, batch);
  }
  void combine_start(Lane& lane, DispatchHandle& handle, const ExpertBatch& batch) override {
    inner_->combine_start(lane, handle, batch);
    started(handle) = Clock::now();
  }
  void combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) override {
    wait_for_rows(handle);
    inner_->combine_finish(lane, handle, out);
  }
  void abort(Epoch epoch) override {
    inner_->abort(epoch);
    const std::lock_guard lock(mutex_);
    aborted_below_ = std::max(aborted_below_, epoch);
    aborted_.notify_all();
  }
  Traffic traffic() const override { return inner_->traffic(); }
  Status status() const override { return inner_->status(); }

 private:
  Clock::time_point& started(DispatchHandle& handle) {
    size_t microbatch = 0;
    while (&inner_->handle(static_cast<int>(microbatch)) != &handle) ++microbatch;
    return started_[microbatch];
  }
  void wait_for_rows(DispatchHandle& handle) {
    std::unique_lock lock(mutex_);
    aborted_.wait_until(lock, started(handle) + delay_, [this] { return epoch_ < aborted_below_; });
  }

  const std::unique_ptr<ExpertTransport> inner_;
  const std::chrono::microseconds delay_;
  std::vector<Clock::time_point> started_;  // by microbatch, the half in flight
  std::mutex mutex_;
  std::condition_variable aborted_;
  Epoch epoch_, aborted_below_;
};

}  // namespace

std::unique_ptr<ExpertTransport> make_delay_transport(std::unique_ptr<ExpertTransport> inner,
                                                      std::chrono::microseconds delay) {
  return std::make_unique<DelayTransport>(std::move(inner), delay);
}

Result<std::unique_ptr<ExpertTransport>> make_transport(const TransportOptions& options) {
  const ExpertLayout layout = options.layout.value_or(ExpertLayout::kContiguous);
  using Reach = GroupTransport::Reach;
  std::unique_ptr<ExpertTransport> made;
  if (options.kind == "loopback") {
    made = make_loopback_transport(layout);
  } else if (options.kind == "shm") {
    made = std::make_unique<GroupTransport>(Reach::kShared, layout, options);
  } else if (options.kind == "tcp") {
    made = std::make_unique<GroupTransport>(Reach::kTcp, layout, options);
  } else if (options.kind == "auto") {
    made = std::make_unique<GroupTransport>(Reach::kBoth, layout, options);
  } else {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("expert transport {}: there are loopback, shm, tcp and auto", options.kind));
  }
  if (options.delay.count() > 0) made = make_delay_transport(std::move(made), options.delay);
  return Result<std::unique_ptr<ExpertTransport>>(std::move(made));
}

}  // namespace manta::ep
