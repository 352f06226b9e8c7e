// Cache layers are memory files (memfd). A peer opens them through /proc, where only processes of the same user find
// them, maps them and copies: one memcpy for a run of blocks, nothing in between.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/pack.h"
#include "transfer/block_mover.h"

namespace manta::transfer {
namespace {

struct LayerFile {
  int32_t fd = -1;
  uint64_t device = 0;  // with the inode: proves that the peer opened this file and no other
  uint64_t inode = 0;
};
auto fields(LayerFile& f) {
  return std::tie(f.fd, f.device, f.inode);
}
struct CacheFiles {
  int32_t pid = 0;
  std::vector<LayerFile> layers;
};
auto fields(CacheFiles& f) {
  return std::tie(f.pid, f.layers);
}

Error no_file(std::string why) {
  return error(ErrorCode::kFailedPrecondition,
               why + "; SharedMemoryConnector needs both engines on one host, in one PID namespace, under one user");
}

class MappedCache : public PeerCache {
 public:
  explicit MappedCache(size_t layer_bytes) : layer_bytes_(layer_bytes) {}
  ~MappedCache() override {
    for (std::byte* layer : layers_) ::munmap(layer, layer_bytes_);
  }

  Status map(int pid, const LayerFile& file) {
    const std::string path = fmt::format("/proc/{}/fd/{}", pid, file.fd);
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return no_file(fmt::format("the peer's cache {} cannot be opened: {}", path, std::strerror(errno)));
    struct stat s {};
    const bool same = ::fstat(fd, &s) == 0 && s.st_dev == file.device && s.st_ino == file.inode &&
                      static_cast<size_t>(s.st_size) == layer_bytes_;
    void* at = same ? ::mmap(nullptr, layer_bytes_, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    ::close(fd);
    if (!same) return no_file(fmt::format("{} is not the peer's cache layer of {} bytes", path, layer_bytes_));
    if (at == MAP_FAILED) return no_file(fmt::format("{} cannot be mapped: {}", path, std::strerror(errno)));
    layers_.push_back(static_cast<std::byte*>(at));
    return {};
  }
  const std::byte* layer(size_t i) const { return layers_[i]; }

 private:
  size_t layer_bytes_;
  std::vector<std::byte*> layers_;
};

class Copied : public BlockTransfer {
 public:
  std::optional<Status> poll() override { return Status{}; }
};

class SharedMemoryMover : public BlockMover {
 public:
  Status register_cache(const kv::CacheGeometry& geometry, std::span<const CacheLayer> layers) override {
    geometry_ = geometry;
    files_.pid = ::getpid();
    for (const CacheLayer& layer : layers) {
      struct stat s {};
      if (layer.memory_fd < 0 || ::fstat(layer.memory_fd, &s) != 0) {
        return error(ErrorCode::kUnimplemented, "this device's cache cannot be mapped: use NixlConnector");
      }
      files_.layers.push_back({layer.memory_fd, s.st_dev, s.st_ino});
      layers_.push_back(static_cast<std::byte*>(layer.rows.data));
    }
    return {};
  }

  std::string metadata() const override { return pack_message(files_); }

  Result<std::unique_ptr<PeerCache>> open(const std::string& metadata, int num_blocks) override {
    MANTA_ASSIGN(const auto files, unpack_message<CacheFiles>(metadata, "cache files"));
    if (files.layers.size() != layers_.size()) {
      return no_file(fmt::format("the peer shows {} cache layers, {} are here", files.layers.size(), layers_.size()));
    }
    auto cache = std::make_unique<MappedCache>(geometry_.bytes_per_block_and_layer() * num_blocks);
    for (const LayerFile& file : files.layers) MANTA_TRY(cache->map(files.pid, file));
    return std::unique_ptr<PeerCache>(std::move(cache));
  }

  Result<std::unique_ptr<BlockTransfer>> read(PeerCache& peer, std::span<const BlockRun> runs) override {
    const auto& from = static_cast<const MappedCache&>(peer);
    const size_t block_bytes = geometry_.bytes_per_block_and_layer();
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      for (const BlockRun& run : runs) {
        std::memcpy(layers_[layer] + run.local * block_bytes, from.layer(layer) + run.remote * block_bytes,
                    run.count * block_bytes);
      }
    }
    return std::unique_ptr<BlockTransfer>(std::make_unique<Copied>());
  }

 private:
  kv::CacheGeometry geometry_;
  CacheFiles files_;
  std::vector<std::byte*> layers_;
};

}  // namespace

std::vector<BlockRun> coalesce(std::span<const BlockPair> blocks) {
  std::vector<BlockRun> runs;
  for (const BlockPair& b : blocks) {
    if (!runs.empty() && runs.back().remote + runs.back().count == b.remote &&
        runs.back().local + runs.back().count == b.local) {
      ++runs.back().count;
    } else {
      runs.push_back({b.remote, b.local, 1});
    }
  }
  return runs;
}

std::unique_ptr<BlockMover> make_shared_memory_mover() {
  return std::make_unique<SharedMemoryMover>();
}

}  // namespace manta::transfer
