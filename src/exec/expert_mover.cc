#include "exec/expert_mover.h"

#include <sys/resource.h>

#include <utility>

namespace manta::exec {

namespace {
constexpr int kNiceness = 10;  // steps go first
}

void ExpertMover::begin(std::vector<std::vector<ep::ExpertMove>> layers) {
  layers_ = std::move(layers);
  num_packed_ = num_taken_ = 0;
  fault_.reset();
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

void ExpertMover::run(const std::stop_token& stop) {
  ::setpriority(PRIO_PROCESS, 0, kNiceness);  // of this thread, on Linux
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer layer;
    layer.moves = layers_[i];
    std::optional<Error> fault;
    for (const ep::ExpertMove& move : layer.moves) {
      if (stop.stop_requested()) return;
      auto weights = load_(move.layer, move.logical);
      if (!weights.ok()) {
        fault = weights.error();
        break;
      }
      layer.weights.push_back(std::move(*weights));
    }
    std::unique_lock lock(mutex_);
    if (!changed_.wait(lock, stop, [&] { return num_taken_ == num_packed_; })) return;
    fault_ = std::move(fault);
    if (fault_) return changed_.notify_all();
    next_ = std::move(layer);
    ++num_packed_;
    changed_.notify_all();
  }
}

int ExpertMover::num_packed() {
  const std::lock_guard lock(mutex_);
  return num_packed_;
}

void ExpertMover::wait_packed() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return num_packed_ > num_taken_ || fault_; });
}

Status ExpertMover::status() {
  const std::lock_guard lock(mutex_);
  return fault_ ? Status(*fault_) : Status();
}

ExpertMover::Layer ExpertMover::take() {
  Layer layer;
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    layer = std::exchange(next_, {});
    ++num_taken_;
    last = num_taken_ == static_cast<int>(layers_.size());
    changed_.notify_all();
  }
  if (last) cancel();
  return layer;
}

void ExpertMover::cancel() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
  thread_ = {};
  next_ = {};
}

}  // namespace manta::exec
