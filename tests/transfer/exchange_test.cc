// Two connectors of one process over loopback: rows cross, leases end, those who come late are refused.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

#include "transfer/make_connector.h"

namespace manta::transfer {
namespace {

constexpr int kBlockSize = 4, kNumBlocks = 8, kNumLayers = 2;

struct Engine {
  explicit Engine(const std::string& kind, const char* role, uint8_t fill) {
    ConnectorConfig config;
    config.kv_connector = kind;
    config.kv_role = role;
    config.block_size = kBlockSize;
    auto made = make_connector(config);
    EXPECT_TRUE(made.ok()) << made.error().message;
    connector = std::move(*made);
    geometry.num_layers = kNumLayers;
    geometry.num_blocks = kNumBlocks;
    geometry.block_size = kBlockSize;
    geometry.kv_lora_rank = 16;
    geometry.qk_rope_head_dim = 4;
    std::vector<CacheLayer> layers;
    for (int i = 0; i < kNumLayers; ++i) {
      const size_t bytes = geometry.bytes_per_block_and_layer() * kNumBlocks;
      const int fd = ::memfd_create("test", MFD_CLOEXEC);
      EXPECT_EQ(::ftruncate(fd, static_cast<off_t>(bytes)), 0);
      void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      for (int block = 0; block < kNumBlocks; ++block) {
        std::memset(static_cast<char*>(at) + block * (bytes / kNumBlocks), fill + 16 * i + block, bytes / kNumBlocks);
      }
      layers.push_back({make_tensor(at, geometry.dtype, {kNumBlocks, kBlockSize, geometry.row_size()}), fd});
      data.push_back(static_cast<uint8_t*>(at));
    }
    const Status registered = connector.worker->register_cache(geometry, layers);
    EXPECT_TRUE(registered.ok()) << registered.error().message;
    connector.worker->set_wake([this] {
      const std::lock_guard lock(mutex);
      woken = true;
      changed.notify_all();
    });
  }
  ~Engine() { connector.worker->set_wake({}); }

  kv::KvProgress next() {  // parked until the worker has something to say
    std::unique_lock lock(mutex);
    EXPECT_TRUE(changed.wait_for(lock, std::chrono::seconds(60), [this] { return woken; }));
    woken = false;
    lock.unlock();
    return connector.worker->poll();
  }
  void step() { connector.worker->start(connector.scheduler->build_actions()); }
  uint8_t byte(int layer, int block) const { return data[layer][block * geometry.bytes_per_block_and_layer()]; }

  kv::CacheGeometry geometry;
  std::vector<uint8_t*> data;
  std::mutex mutex;
  std::condition_variable changed;
  bool woken = false;
  Connector connector;  // last: its threads use the rest
};

constexpr RequestId kPrefill{1, 1}, kDecode{2, 1};

// Prefills 10 tokens into blocks 5, 6, 2 and gives the answer's kv_transfer_params.
std::string prefill(Engine& engine) {
  engine.connector.scheduler->on_added(kPrefill, R"({"do_remote_decode":true})");
  const std::vector<BlockId> blocks = {5, 6, 2};
  const HandOff hand_off = engine.connector.scheduler->on_finished(kPrefill, blocks, 10);
  EXPECT_TRUE(hand_off.held);
  engine.step();
  return hand_off.kv_transfer_params;
}

void pull(Engine& engine, const std::string& params) {
  KvConnectorScheduler& scheduler = *engine.connector.scheduler;
  scheduler.on_added(kDecode, params);
  const std::vector<TokenId> tokens(10, 1);
  const auto match = scheduler.match(kDecode, tokens, 0, params);
  ASSERT_TRUE(match.ok()) << match.error().message;
  ASSERT_EQ((*match)->num_tokens, 9);
  const std::vector<BlockId> blocks = {1, 3, 4};
  scheduler.on_allocated(kDecode, blocks, 9);
  engine.step();
}

class Exchanges : public ::testing::TestWithParam<const char*> {};

TEST_P(Exchanges, RowsCrossAndTheLeaseEnds) {
  Engine from(GetParam(), "kv_producer", 1), to(GetParam(), "kv_consumer", 100);
  pull(to, prefill(from));
  const kv::KvProgress got = to.next();
  ASSERT_EQ(got.received, std::vector<RequestId>{kDecode}) << (got.failed.empty() ? "" : got.failed[0].reason);
  for (int layer = 0; layer < kNumLayers; ++layer) {
    EXPECT_EQ(to.byte(layer, 1), from.byte(layer, 5));
    EXPECT_EQ(to.byte(layer, 3), from.byte(layer, 6));
    EXPECT_EQ(to.byte(layer, 4), from.byte(layer, 2));
    EXPECT_EQ(to.byte(layer, 0), 100 + 16 * layer);  // nothing else changed
  }
  const kv::KvProgress sent = from.next();
  EXPECT_EQ(sent.sent, std::vector<RequestId>{kPrefill});
  EXPECT_EQ(sent.counters.bytes_sent, 3 * from.geometry.bytes_per_block());
  EXPECT_EQ(sent.counters.num_leases, 0);
  EXPECT_EQ(to.connector.worker->poll().counters.bytes_received, sent.counters.bytes_sent);
}

TEST_P(Exchanges, ASecondReaderOfTheSameLeaseIsRefused) {
  Engine from(GetParam(), "kv_producer", 1), to(GetParam(), "kv_consumer", 100), late(GetParam(), "kv_consumer", 200);
  const std::string params = prefill(from);
  pull(to, params);
  EXPECT_EQ(to.next().received.size(), 1u);
  EXPECT_EQ(from.next().sent.size(), 1u);
  pull(late, params);
  const kv::KvProgress refused = late.next();
  ASSERT_EQ(refused.failed.size(), 1u);
  EXPECT_EQ(refused.failed[0].num_valid_tokens, 0);
  EXPECT_NE(refused.failed[0].reason.find("ended"), std::string::npos) << refused.failed[0].reason;
}

INSTANTIATE_TEST_SUITE_P(Movers, Exchanges, ::testing::Values("SharedMemoryConnector", "NixlConnector"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace manta::transfer
