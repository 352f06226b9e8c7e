// How fast cache rows cross from one process to another through a KV connector (leases, side channel, mover), beside
// the same coalesced runs moved bare: memcpy for SharedMemoryConnector, a loop over NIXL's own reads for NixlConnector.
//
//   manta_kv_transfer [shm|nixl|vram]
//
// vram (of a CUDA build): NixlConnector with both caches in the memory of one GPU, beside plain copies on that GPU, of
// the same runs and of everything in one piece.
//
// A child owns the rows of 16 requests of 64 blocks each (DeepSeek-V3's rows, 8 layers), in runs of 1, 4 and 16 blocks;
// this process pulls them all at once. Printed: GB/s of both, and their ratio.
// Then one request of all blocks whose prefill is computed in 8 chunks (a sleep each): how long after the last chunk
// the rows are here when they are pulled at the end, as behind a proxy that calls prefill first, and when they are
// pulled chunk by chunk, as behind manta's router.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>
#include <vector>

#include "base/pack.h"
#include "transfer/block_mover.h"
#include "transfer/make_connector.h"
#include "transfer/nixl_mover.h"

#ifdef MANTA_CUDA
#include <cuda_runtime_api.h>
#endif

namespace manta::transfer {
namespace {

constexpr int kBlockSize = 64, kNumLayers = 8, kNumRequests = 16, kBlocksPerRequest = 64;
constexpr int kNumBlocks = kNumRequests * kBlocksPerRequest;
constexpr int kRounds = 5;
constexpr int kNumChunks = 8;
constexpr std::chrono::milliseconds kChunkTime{40};

using Clock = std::chrono::steady_clock;  // one for all processes of a machine
using nlohmann::json;

template <typename T>
T must(Result<T> made) {
  if (!made.ok()) {
    fmt::print(stderr, "{}\n", made.error().message);
    std::_Exit(1);
  }
  return std::move(*made);
}
void must(const Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "{}\n", status.error().message);
  std::_Exit(1);
}

// ---- caches in GPU memory ----
#ifdef MANTA_CUDA
void must(cudaError_t code) {
  if (code != cudaSuccess) must(error(ErrorCode::kInternal, cudaGetErrorString(code)));
}
void* gpu_memory(size_t bytes, uint8_t fill) {
  void* at = nullptr;
  must(cudaMalloc(&at, bytes));
  must(cudaMemset(at, fill, bytes));
  must(cudaDeviceSynchronize());
  return at;
}
uint8_t gpu_byte(const void* at) {
  uint8_t out = 0;
  must(cudaMemcpy(&out, at, 1, cudaMemcpyDeviceToHost));
  return out;
}
void gpu_copy(void* to, const void* from, size_t bytes) {
  must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
}
void gpu_wait() {
  must(cudaDeviceSynchronize());
}
#else
void* gpu_memory(size_t, uint8_t) {
  must(error(ErrorCode::kUnimplemented, "vram: this is no CUDA build (./dev build cuda manta_kv_transfer)"));
  return nullptr;
}
uint8_t gpu_byte(const void*) {
  return 0;
}
void gpu_copy(void*, const void*, size_t) {}
void gpu_wait() {}
#endif

struct Cache {
  Cache(uint8_t fill, bool on_gpu) {
    geometry.num_layers = kNumLayers;
    geometry.num_blocks = kNumBlocks;
    geometry.block_size = kBlockSize;
    geometry.kv_lora_rank = 512;
    geometry.qk_rope_head_dim = 64;
    for (int i = 0; i < kNumLayers; ++i) {
      const size_t bytes = geometry.bytes_per_block_and_layer() * kNumBlocks;
      if (on_gpu) {
        void* at = gpu_memory(bytes, fill);
        layers.push_back({make_tensor(at, geometry.dtype, {kNumBlocks, kBlockSize, geometry.row_size()}), -1, 0, {}});
        continue;
      }
      const int fd = ::memfd_create("cache", MFD_CLOEXEC);
      if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) std::_Exit(1);
      void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      std::memset(at, fill, bytes);
      layers.push_back({make_tensor(at, geometry.dtype, {kNumBlocks, kBlockSize, geometry.row_size()}), fd, -1, {}});
    }
  }
  uint8_t last_byte() const {
    const auto* rows = static_cast<const uint8_t*>(layers.back().rows.data);
    const uint8_t* at = rows + geometry.bytes_per_block_and_layer() * kNumBlocks - 1;
    return layers.back().gpu < 0 ? *at : gpu_byte(at);
  }

  kv::CacheGeometry geometry;
  std::vector<CacheLayer> layers;
};

// Of request i: runs of `run` blocks that follow each other, the runs themselves strewn over the cache.
std::vector<BlockId> blocks_of(int i, int run) {
  std::vector<BlockId> out;
  const int num_runs = kNumBlocks / run;
  for (int j = 0; j < kBlocksPerRequest / run; ++j) {
    const int at = (i * (kBlocksPerRequest / run) + j) * 7 % num_runs;  // 7: prime to every number of runs
    for (int k = 0; k < run; ++k) out.push_back(at * run + k);
  }
  return out;
}

Connector connect(const std::string& kind, const char* role, Cache& cache) {
  ConnectorConfig config;
  config.kv_connector = kind;
  config.kv_role = role;
  config.block_size = kBlockSize;
  Connector out = must(make_connector(config));
  must(out.worker->register_cache(cache.geometry, cache.layers));
  return out;
}

std::unique_ptr<BlockMover> bare_mover(const std::string& kind, Cache& cache) {
  std::unique_ptr<BlockMover> mover;
  if (kind == "NixlConnector") {
    NixlOptions options;
    options.backends = {"UCX"};
    options.name = fmt::format("bare-{}", ::getpid());
    mover = must(make_nixl_mover(options));
  } else {
    mover = make_shared_memory_mover();
  }
  must(mover->register_cache(cache.geometry, cache.layers));
  return mover;
}

void write_text(int fd, const std::string& text) {
  const uint64_t size = text.size();
  if (::write(fd, &size, sizeof(size)) != sizeof(size)) std::_Exit(1);
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n <= 0) std::_Exit(1);
    done += static_cast<size_t>(n);
  }
}
std::string read_text(int fd) {
  uint64_t size = 0;
  if (::read(fd, &size, sizeof(size)) != sizeof(size)) std::_Exit(0);  // the other side has ended
  std::string text(size, 0);
  for (size_t done = 0; done < size;) {
    const ssize_t n = ::read(fd, text.data() + done, size - done);
    if (n <= 0) std::_Exit(1);
    done += static_cast<size_t>(n);
  }
  return text;
}

std::vector<BlockId> all_blocks() {
  std::vector<BlockId> out(kNumBlocks);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

// A prefill of all blocks, chunk by chunk. Returns the kv_transfer_params of its answer with when it ended, in ns.
std::string prefill_in_chunks(Connector& connector, RequestId id, const std::string& transfer_id) {
  const auto act = [&] { connector.worker->start(connector.scheduler->build_actions()); };
  json params = {{"do_remote_decode", true}};
  if (!transfer_id.empty()) params["transfer_id"] = transfer_id;
  connector.scheduler->on_added(id, params.dump());
  act();
  const auto blocks = all_blocks();
  for (int i = 1; i <= kNumChunks; ++i) {
    std::this_thread::sleep_for(kChunkTime);
    connector.scheduler->on_computed(id, blocks, kNumBlocks * kBlockSize * i / kNumChunks);
    act();
  }
  const int64_t now = Clock::now().time_since_epoch().count();
  json answer = json::parse(connector.scheduler->on_finished(id, blocks, kNumBlocks * kBlockSize).kv_transfer_params);
  act();
  answer["ended"] = now;
  return answer.dump();
}

// The child: its mover's metadata first, then on every word either of a run length the kv_transfer_params of all
// requests, or of "chunks NAME" those of a request in chunks that is announced under that name ("-": not announced).
[[noreturn]] void own(const std::string& kind, bool on_gpu, int in, int out) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  Cache cache(1, on_gpu);
  const auto mover = bare_mover(kind, cache);
  Connector connector = connect(kind, "kv_producer", cache);
  write_text(out, mover->metadata());
  for (uint64_t serial = 1;;) {
    const std::string word = read_text(in);
    if (word.starts_with("chunks ")) {
      const std::string name = word.substr(7);
      write_text(out, prefill_in_chunks(connector, {1, serial++}, name == "-" ? "" : name));
      static_cast<void>(connector.worker->poll());
      continue;
    }
    const int run = std::stoi(word);
    for (int i = 0; i < kNumRequests; ++i) {
      const RequestId id{1, serial++};
      connector.scheduler->on_added(id, R"({"do_remote_decode":true})");
      const HandOff hand_off = connector.scheduler->on_finished(id, blocks_of(i, run), kBlocksPerRequest * kBlockSize);
      connector.worker->start(connector.scheduler->build_actions());
      write_text(out, hand_off.kv_transfer_params);
    }
    static_cast<void>(connector.worker->poll());
  }
}

class Puller {
 public:
  Puller(const std::string& kind, Cache& cache) : connector_(connect(kind, "kv_consumer", cache)) {
    connector_.worker->set_wake([this] {
      const std::lock_guard lock(mutex_);
      woken_ = true;
      changed_.notify_all();
    });
  }
  ~Puller() { connector_.worker->set_wake({}); }

  void pull(const std::vector<std::string>& params, int run) {
    for (int i = 0; i < kNumRequests; ++i) begin(params[i], blocks_of(i, run));
    finish(kNumRequests);
  }
  void pull_all_blocks(const std::string& params) {
    begin(params, all_blocks());
    finish(1);
  }

 private:
  void begin(const std::string& params, const std::vector<BlockId>& blocks) {
    const RequestId id{2, ++serial_};
    const int num_tokens = static_cast<int>(blocks.size()) * kBlockSize;
    const std::vector<TokenId> tokens(num_tokens + 1, 1);
    connector_.scheduler->on_added(id, params);
    must(connector_.scheduler->match(id, tokens, 0, params));
    connector_.scheduler->on_allocated(id, blocks, num_tokens);
  }
  void finish(size_t num_requests) {
    connector_.worker->start(connector_.scheduler->build_actions());
    for (size_t num_received = 0; num_received < num_requests;) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return woken_; });
        woken_ = false;
      }
      const kv::KvProgress progress = connector_.worker->poll();
      for (const auto& failed : progress.failed) must(error(ErrorCode::kUnavailable, failed.reason));
      num_received += progress.received.size();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;
  uint64_t serial_ = 0;
  Connector connector_;  // last: its threads use the rest
};

// As fast as the mover alone goes: all requests begun, then looked at until all are over.
void move_bare(BlockMover& mover, PeerCache& peer, int run) {
  std::vector<std::unique_ptr<BlockTransfer>> transfers;
  for (int i = 0; i < kNumRequests; ++i) {
    std::vector<BlockPair> pairs;
    for (const BlockId block : blocks_of(i, run)) pairs.push_back({block, block});
    transfers.push_back(must(mover.read(peer, coalesce(pairs))));
  }
  for (const auto& transfer : transfers) {
    std::optional<Status> over;
    while (!(over = transfer->poll())) {
    }
    must(*over);
  }
}

double best_seconds(const std::function<void()>& body) {
  double best = 1e9;
  for (int i = 0; i <= kRounds; ++i) {  // the first one is not counted
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    if (i > 0) best = std::min(best, spent.count());
  }
  return best;
}

double seconds_since(int64_t ns) {
  return std::chrono::duration<double>(Clock::now() - Clock::time_point(Clock::duration(ns))).count();
}

void measure_chunks(const std::string& kind, Puller& puller, int to_child, int from_child) {
  std::string where;  // the answer of the latest prefill: it says where its engine is
  double at_end = 1e9, by_chunk = 1e9;
  for (int i = 0; i < kRounds; ++i) {
    write_text(to_child, "chunks -");
    where = read_text(from_child);
    puller.pull_all_blocks(where);
    at_end = std::min(at_end, seconds_since(json::parse(where)["ended"]));
  }
  for (int i = 0; i < kRounds; ++i) {
    json early = json::parse(where);
    early["transfer_id"] = fmt::format("transfer-{}", i);
    for (const char* key : {"remote_request_id", "remote_block_ids", "ended"}) early.erase(key);
    write_text(to_child, "chunks " + early["transfer_id"].get<std::string>());
    puller.pull_all_blocks(early.dump());
    by_chunk = std::min(by_chunk, seconds_since(json::parse(read_text(from_child))["ended"]));
  }
  fmt::print(
      "{:22} {} chunks of {} tokens, {} ms each: rows there {:.1f} ms after the last one; pulled by chunk "
      "{:.1f} ms: {:.0f} % hidden\n",
      kind, kNumChunks, kNumBlocks * kBlockSize / kNumChunks, kChunkTime.count(), at_end * 1e3, by_chunk * 1e3,
      100 * (1 - by_chunk / at_end));
}

// What the GPU does with the same runs, and with as many bytes in one piece.
void measure_copies(const Cache& cache, double gigabytes) {
  const Cache from(3, true);
  const size_t block_bytes = cache.geometry.bytes_per_block_and_layer();
  const auto copy = [&](int run) {
    for (int layer = 0; layer < kNumLayers; ++layer) {
      auto* to = static_cast<std::byte*>(cache.layers[layer].rows.data);
      const auto* source = static_cast<const std::byte*>(from.layers[layer].rows.data);
      for (int i = 0; i < kNumBlocks; i += run) {
        gpu_copy(to + i * block_bytes, source + i * block_bytes, run * block_bytes);
      }
    }
    gpu_wait();
  };
  for (const int run : {1, 4, 16, kNumBlocks}) {
    fmt::print("plain device copy      runs of {:2} blocks: {:6.2f} GB/s\n", run,
               gigabytes / best_seconds([&] { copy(run); }));
  }
}

void measure(const std::string& kind, bool on_gpu) {
  int to_child[2], from_child[2];
  if (::pipe(to_child) != 0 || ::pipe(from_child) != 0) std::_Exit(1);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(to_child[1]);
    own(kind, on_gpu, to_child[0], from_child[1]);
  }
  Cache cache(2, on_gpu);
  const auto mover = bare_mover(kind, cache);
  const auto peer = must(mover->open(read_text(from_child[0]), kNumBlocks));
  Puller puller(kind, cache);
  const double gigabytes = static_cast<double>(cache.geometry.bytes_per_block()) * kNumBlocks / 1e9;
  for (const int run : {1, 4, 16}) {
    std::vector<std::string> params(kNumRequests);
    double pulled = 1e9;
    for (int i = 0; i <= kRounds; ++i) {
      write_text(to_child[1], std::to_string(run));
      for (std::string& p : params) p = read_text(from_child[0]);
      const auto begin = std::chrono::steady_clock::now();
      puller.pull(params, run);
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
      if (i > 0) pulled = std::min(pulled, spent.count());
    }
    if (cache.last_byte() != 1) must(error(ErrorCode::kDataLoss, "the rows did not come"));
    const double bare = best_seconds([&] { move_bare(*mover, *peer, run); });
    fmt::print("{:22} runs of {:2} blocks: {:6.2f} GB/s, bare {:6.2f} GB/s, ratio {:.2f}\n", kind, run,
               gigabytes / pulled, gigabytes / bare, bare / pulled);
  }
  if (on_gpu) measure_copies(cache, gigabytes);
  measure_chunks(kind, puller, to_child[1], from_child[0]);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace manta::transfer

int main(int argc, char** argv) {
  const std::string which = argc > 1 ? argv[1] : "";
  if (which.empty() || which == "shm") manta::transfer::measure("SharedMemoryConnector", false);
  if (which.empty() || which == "nixl") manta::transfer::measure("NixlConnector", false);
  if (which == "vram") manta::transfer::measure("NixlConnector", true);
}
