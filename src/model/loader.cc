#include "model/loader.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

namespace manta::model {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kProgressEvery = std::chrono::milliseconds(200);

Status load_one(const WeightSource& source, backend::Backend& backend, const WeightTarget& target, ReadBuffer& buffer) {
  MANTA_ASSIGN(const backend::WeightView view, source.read(target.spec, buffer));
  MANTA_ASSIGN(*target.into, backend.pack(view, target.spec.role));
  return {};
}

int usable_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

// Threads take the next tensor of the list until it is empty or one of them failed.
class ParallelLoad {
 public:
  ParallelLoad(const WeightSource& source, backend::Backend& backend, std::vector<WeightTarget> targets)
      : source_(source), backend_(backend), targets_(std::move(targets)) {
    for (const WeightTarget& target : targets_) bytes_total_ += source_.num_bytes(target.spec);
  }

  Status run(int num_threads, const ProgressFn& progress) {
    const auto begin = Clock::now();
    num_threads = std::clamp<int>(num_threads, 1, static_cast<int>(std::max<size_t>(targets_.size(), 1)));
    running_ = num_threads;
    std::vector<std::jthread> threads;
    for (int i = 0; i < num_threads; ++i) threads.emplace_back([this] { work(); });
    const auto report = [&](bool finished) {
      if (!progress) return;
      const std::chrono::duration<double> seconds = Clock::now() - begin;
      progress({bytes_done_.load(), bytes_total_, seconds.count(), finished});
    };
    std::unique_lock lock(mutex_);
    while (!all_done_.wait_for(lock, kProgressEvery, [this] { return running_ == 0; })) {
      lock.unlock();
      report(false);
      lock.lock();
    }
    if (fault_) return *fault_;
    report(true);
    return {};
  }

  size_t bytes_total() const { return bytes_total_; }
  const std::vector<WeightTarget>& targets() const { return targets_; }

 private:
  void work() {
    ReadBuffer buffer;
    std::optional<Error> fault;
    while (!fault && !stop_.load()) {
      const size_t i = next_.fetch_add(1);
      if (i >= targets_.size()) break;
      const Status status = load_one(source_, backend_, targets_[i], buffer);
      if (!status.ok()) fault = status.error();
      bytes_done_ += source_.num_bytes(targets_[i].spec);
    }
    const std::lock_guard lock(mutex_);
    if (fault) stop_ = true;
    if (fault && !fault_) fault_ = std::move(fault);
    if (--running_ == 0) all_done_.notify_one();
  }

  const WeightSource& source_;
  backend::Backend& backend_;
  const std::vector<WeightTarget> targets_;
  size_t bytes_total_ = 0;
  std::atomic<size_t> next_ = 0;
  std::atomic<size_t> bytes_done_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;
  std::condition_variable all_done_;
  int running_ = 0;
  std::optional<Error> fault_;
};

void sort_for_reading(const WeightSource& source, std::vector<WeightTarget>& targets) {
  std::vector<std::pair<uint64_t, size_t>> order;
  for (size_t i = 0; i < targets.size(); ++i) order.emplace_back(source.read_order(targets[i].spec), i);
  std::sort(order.begin(), order.end());
  std::vector<WeightTarget> sorted;
  for (const auto& [key, i] : order) sorted.push_back(std::move(targets[i]));
  targets = std::move(sorted);
}

}  // namespace

Result<std::unique_ptr<Weights>> load_weights(const ModelConfig& config, const WeightSource& source,
                                              backend::Backend& backend, const LoadOptions& options) {
  auto weights = std::make_unique<Weights>();
  MANTA_ASSIGN(std::vector<WeightTarget> targets, list_weights(config, options.experts, *weights));
  for (const WeightTarget& target : targets) MANTA_TRY(source.check(target.spec));
  sort_for_reading(source, targets);
  ParallelLoad load(source, backend, std::move(targets));
  MANTA_TRY(load.run(options.num_threads > 0 ? options.num_threads : usable_cores(), options.progress));
  weights->num_read_bytes = load.bytes_total();
  for (const WeightTarget& target : load.targets()) weights->num_bytes += (*target.into)->num_bytes();
  return weights;
}

Result<backend::MlpWeights> load_expert(const ModelConfig& config, const WeightSource& source,
                                        backend::Backend& backend, int layer, int expert) {
  const backend::ModelShape& shape = config.shape;
  if (layer < 0 || layer >= shape.num_layers() || !shape.is_moe_layer(layer) || expert < 0 ||
      expert >= shape.n_routed_experts) {
    return error(ErrorCode::kInvalidArgument, fmt::format("there is no expert {} in layer {}", expert, layer));
  }
  backend::MlpWeights weights;
  ReadBuffer buffer;
  for (const WeightTarget& target : list_expert(config, layer, expert, weights)) {
    MANTA_TRY(source.check(target.spec));
    MANTA_TRY(load_one(source, backend, target, buffer));
  }
  return weights;
}

}  // namespace manta::model
