#include "transfer/decode_bench.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
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
    actions_.before_step = true;
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
      for (size_t first = 0, end = 0; first < load.blocks.size(); first = end) {
        end = first + 1;
        while (end < load.blocks.size() && end - first < kMostBlocks && load.blocks[end] == load.blocks[end - 1] + 1) {
          ++end;
        }
        fill(load.blocks[first], end - first);
      }
    }
  }

  void wait_for_layer(int) override {}
  void layer_done(int) override {}
  kv::KvProgress poll() override { return {}; }
  void set_wake(std::function<void()>) override {}

 private:
  // Blocks that follow each other, in every layer.
  void fill(BlockId first, size_t num_blocks) {
    if (values_.empty()) draw();
    const size_t value_bytes = dtype_bytes(layers_.front().rows.dtype);
    const size_t block_bytes = values_per_block_ * value_bytes;
    for (const CacheLayer& layer : layers_) {
      offset_ = (offset_ + kStride) % kNumOffsets;  // other values in every layer and block
      std::byte* to = static_cast<std::byte*>(layer.rows.data) + first * block_bytes;
      const std::byte* from = values_.data() + offset_ * value_bytes;
      layer.write ? layer.write(to, from, num_blocks * block_bytes)
                  : static_cast<void>(std::memcpy(to, from, num_blocks * block_bytes));
    }
  }

  // Values are drawn once: a value for every row of a large cache would take minutes.
  void draw() {
    std::mt19937 random;  // the same rows in every run
    std::normal_distribution<float> normal(static_cast<float>(options_.fill_mean),
                                           static_cast<float>(options_.fill_std));
    const size_t num_values = kNumOffsets + kMostBlocks * values_per_block_;
    const bool f32 = layers_.front().rows.dtype == DType::kF32;
    values_.resize(num_values * (f32 ? sizeof(float) : sizeof(uint16_t)));
    for (size_t i = 0; i < num_values; ++i) {
      const float value = options_.fill_std == 0.0 ? static_cast<float>(options_.fill_mean) : normal(random);
      const auto bf16 = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
      f32 ? std::memcpy(&values_[i * sizeof(value)], &value, sizeof(value))
          : std::memcpy(&values_[i * sizeof(bf16)], &bf16, sizeof(bf16));
    }
  }

  static constexpr size_t kMostBlocks = 16;  // that are written at once
  static constexpr size_t kNumOffsets = 1 << 18;
  static constexpr size_t kStride = 100'003;  // a prime

  DecodeBenchOptions options_;
  std::vector<CacheLayer> layers_;
  size_t values_per_block_ = 0;
  std::vector<std::byte> values_;
  size_t offset_ = 0;
};

}  // namespace

std::unique_ptr<KvConnectorScheduler> make_decode_bench_scheduler(const DecodeBenchOptions& options) {
  return std::make_unique<DecodeBenchScheduler>(options.block_size);
}
std::unique_ptr<KvConnectorWorker> make_decode_bench_worker(const DecodeBenchOptions& options) {
  return std::make_unique<DecodeBenchWorker>(options);
}

}  // namespace manta::transfer
