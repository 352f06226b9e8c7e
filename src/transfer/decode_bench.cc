#include "transfer/decode_bench.h"

#include <fmt/format.h>

#include <bit>
#include <random>
#include <unordered_map>
#include <vector>

namespace manta::transfer {
namespace {

class DecodeBenchScheduler : public KvConnectorScheduler {
 public:
  explicit DecodeBenchScheduler(int block_size) : block_size_(block_size) {}

  void on_added(RequestId id, const std::string&) override { num_local_tokens_[id] = 0; }

  Result<std::optional<ExternalMatch>> match(RequestId id, std::span<const TokenId> tokens, int num_local_tokens,
                                             const std::string&) override {
    num_local_tokens_.at(id) = num_local_tokens;
    const int num_made_up = static_cast<int>(tokens.size()) - 1 - num_local_tokens;
    return std::optional(ExternalMatch{std::max(0, num_made_up), /*asynchronous=*/false});
  }

  void on_allocated(RequestId id, std::span<const BlockId> blocks, int num_external_tokens) override {
    const int first = num_local_tokens_.at(id) / block_size_;
    const int end = (num_local_tokens_.at(id) + num_external_tokens + block_size_ - 1) / block_size_;
    actions_.loads.push_back({id, 0, {blocks.begin() + first, blocks.begin() + end}, num_external_tokens, 0, ""});
  }

  void on_computed(RequestId, std::span<const BlockId>, int) override {}
  kv::KvActions build_actions() override { return std::exchange(actions_, {}); }
  void on_progress(const kv::KvProgress&) override {}
  HandOff on_finished(RequestId id, std::span<const BlockId>, int) override {
    num_local_tokens_.erase(id);
    return {};
  }
  void on_aborted(RequestId id) override { num_local_tokens_.erase(id); }

 private:
  int block_size_;
  std::unordered_map<RequestId, int> num_local_tokens_;
  kv::KvActions actions_;
};

class DecodeBenchWorker : public KvConnectorWorker {
 public:
  explicit DecodeBenchWorker(const DecodeBenchOptions& options) : options_(options) {}

  Status register_cache(const kv::CacheGeometry& geometry, std::span<const CacheLayer> layers) override {
    if (geometry.dtype != DType::kF32 && geometry.dtype != DType::kBF16) {
      return error(ErrorCode::kUnimplemented,
                   fmt::format("DecodeBenchConnector: a cache of {} cannot be filled", to_string(geometry.dtype)));
    }
    layers_.assign(layers.begin(), layers.end());
    values_per_block_ = static_cast<size_t>(geometry.block_size) * geometry.row_size();
    return {};
  }

  void start(const kv::KvActions& actions) override {
    for (const kv::KvAction& load : actions.loads) {
      for (const BlockId block : load.blocks) fill(block);
    }
  }

  void wait_for_layer(int) override {}
  void layer_done(int) override {}
  kv::KvProgress poll() override { return {}; }
  void set_wake(std::function<void()>) override {}

 private:
  void fill(BlockId block) {
    for (const CacheLayer& layer : layers_) {
      const size_t first = block * values_per_block_;
      for (size_t i = first; i < first + values_per_block_; ++i) {
        const float value = options_.fill_std == 0.0 ? static_cast<float>(options_.fill_mean) : draw();
        if (layer.rows.dtype == DType::kF32) {
          static_cast<float*>(layer.rows.data)[i] = value;
        } else {
          static_cast<uint16_t*>(layer.rows.data)[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
        }
      }
    }
  }

  float draw() {
    std::normal_distribution<float> normal(static_cast<float>(options_.fill_mean),
                                           static_cast<float>(options_.fill_std));
    return normal(random_);
  }

  DecodeBenchOptions options_;
  std::vector<CacheLayer> layers_;
  size_t values_per_block_ = 0;
  std::mt19937 random_;  // the same rows in every run
};

}  // namespace

std::unique_ptr<KvConnectorScheduler> make_decode_bench_scheduler(const DecodeBenchOptions& options) {
  return std::make_unique<DecodeBenchScheduler>(options.block_size);
}
std::unique_ptr<KvConnectorWorker> make_decode_bench_worker(const DecodeBenchOptions& options) {
  return std::make_unique<DecodeBenchWorker>(options);
}

}  // namespace manta::transfer
