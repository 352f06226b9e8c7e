#include "transfer/nixl_mover.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "base/pack.h"
#include "transfer/nixl_library.h"

namespace manta::transfer {
namespace {

using Handle = NixlLibrary::Handle;
using Clock = std::chrono::steady_clock;

// A peer that is gone is told by its backend; one that hangs is given up after this.
constexpr auto kReadDeadline = std::chrono::seconds(20);

constexpr const char* kNoVram =
    " for GPU memory: its UCX needs libcuda.so.1 and libnvidia-ml.so.1 on the library path, and cuda_ipc or a NIC in "
    "UCX_TLS where that is set";

struct AgentCard {
  std::string metadata;             // NIXL's own
  std::vector<uint64_t> addresses;  // of each layer
  int32_t gpu = -1;                 // whose memory they are in; -1: host memory
};
auto fields(AgentCard& c) {
  return std::tie(c.metadata, c.addresses, c.gpu);
}

// Of every layer of a cache, in NIXL's words.
struct Memory {
  explicit Memory(int gpu) : kind(gpu < 0 ? NixlLibrary::kDram : NixlLibrary::kVram), device(std::max(0, gpu)) {}
  int kind;
  uint64_t device;
};

Status check(int status, const char* what) {
  if (status >= 0) return {};
  return error(ErrorCode::kUnavailable, fmt::format("NIXL: {} failed with status {}", what, status));
}

// The library and an agent in it. Peers and transfers keep it alive.
struct Agent {
  const NixlLibrary* nixl = nullptr;
  Handle agent = nullptr;
  Handle args = nullptr;
  std::vector<Handle> backends;
  ~Agent() {
    for (const Handle backend : backends) nixl->destroy_backend(backend);
    if (args != nullptr) nixl->destroy_opt_args(args);
    if (agent != nullptr) nixl->destroy_agent(agent);
  }
};

class NixlPeer : public PeerCache {
 public:
  NixlPeer(std::shared_ptr<Agent> agent, std::string name, AgentCard card)
      : agent_(std::move(agent)), name_(std::move(name)), addresses_(std::move(card.addresses)), memory_(card.gpu) {}
  ~NixlPeer() override { agent_->nixl->invalidate_remote_md(agent_->agent, name_.c_str()); }
  const std::string& name() const { return name_; }
  uint64_t address(size_t layer) const { return addresses_[layer]; }
  const Memory& memory() const { return memory_; }

 private:
  std::shared_ptr<Agent> agent_;
  std::string name_;
  std::vector<uint64_t> addresses_;
  Memory memory_;
};

class NixlTransfer : public BlockTransfer {
 public:
  explicit NixlTransfer(std::shared_ptr<Agent> agent) : agent_(std::move(agent)) {}
  ~NixlTransfer() override {
    const NixlLibrary& nixl = *agent_->nixl;
    if (request_ != nullptr) {
      nixl.release_xfer_req(agent_->agent, request_);  // aborts what is under way
      nixl.destroy_xfer_req(request_);
    }
    if (local_ != nullptr) nixl.destroy_xfer_dlist(local_);
    if (remote_ != nullptr) nixl.destroy_xfer_dlist(remote_);
  }

  Status begin(const NixlPeer& peer, std::span<const BlockRun> runs, std::span<const uint64_t> layers,
               const Memory& memory, size_t block_bytes) {
    const NixlLibrary& nixl = *agent_->nixl;
    MANTA_TRY(check(nixl.create_xfer_dlist(memory.kind, &local_), "create_xfer_dlist"));
    MANTA_TRY(check(nixl.create_xfer_dlist(peer.memory().kind, &remote_), "create_xfer_dlist"));
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      for (const BlockRun& run : runs) {
        const size_t bytes = run.count * block_bytes;
        const uint64_t to = layers[layer] + run.local * block_bytes;
        const uint64_t from = peer.address(layer) + run.remote * block_bytes;
        MANTA_TRY(check(nixl.xfer_dlist_add_desc(local_, to, bytes, memory.device), "xfer_dlist_add_desc"));
        MANTA_TRY(check(nixl.xfer_dlist_add_desc(remote_, from, bytes, peer.memory().device), "xfer_dlist_add_desc"));
      }
    }
    const int made = nixl.create_xfer_req(agent_->agent, NixlLibrary::kRead, local_, remote_, peer.name().c_str(),
                                          &request_, agent_->args);
    MANTA_TRY(check(made, "create_xfer_req"));
    status_ = nixl.post_xfer_req(agent_->agent, request_, agent_->args);
    return check(status_, "post_xfer_req");
  }

  std::optional<Status> poll() override {
    if (status_ == NixlLibrary::kInProgress) status_ = agent_->nixl->get_xfer_status(agent_->agent, request_);
    if (status_ != NixlLibrary::kInProgress) return check(status_, "the read");
    if (Clock::now() < deadline_) return std::nullopt;
    return error(ErrorCode::kDeadlineExceeded,
                 fmt::format("NIXL: a read did not end within {} s", kReadDeadline.count()));
  }

 private:
  std::shared_ptr<Agent> agent_;
  Handle local_ = nullptr;
  Handle remote_ = nullptr;
  Handle request_ = nullptr;
  int status_ = NixlLibrary::kInProgress;
  Clock::time_point deadline_ = Clock::now() + kReadDeadline;
};

class NixlMover : public BlockMover {
 public:
  explicit NixlMover(const NixlLibrary* nixl) { agent_->nixl = nixl; }

  Status start(const NixlOptions& options) {
    const NixlLibrary& nixl = *agent_->nixl;
    const NixlLibrary::AgentConfig config;
    MANTA_TRY(check(nixl.create_configured_agent(options.name.c_str(), &config, &agent_->agent), "create_agent"));
    MANTA_TRY(check(nixl.create_opt_args(&agent_->args), "create_opt_args"));
    for (const std::string& name : options.backends) MANTA_TRY(add_backend(name, options.num_threads));
    return {};
  }

  Status add_backend(const std::string& name, int num_threads) {
    const NixlLibrary& nixl = *agent_->nixl;
    Handle mems = nullptr, params = nullptr, backend = nullptr;
    MANTA_TRY(check(nixl.get_plugin_params(agent_->agent, name.c_str(), &mems, &params), "get_plugin_params"));
    nixl.destroy_mem_list(mems);
    Status made;
    if (name == "UCX")
      made = check(nixl.params_add(params, "num_threads", std::to_string(num_threads).c_str()), "params_add");
    if (made.ok()) made = check(nixl.create_backend(agent_->agent, name.c_str(), params, &backend), name.c_str());
    nixl.destroy_params(params);
    MANTA_TRY(made);
    agent_->backends.push_back(backend);
    return check(nixl.opt_args_add_backend(agent_->args, backend), "opt_args_add_backend");
  }

  Status register_cache(const kv::CacheGeometry& geometry, std::span<const CacheLayer> layers) override {
    const NixlLibrary& nixl = *agent_->nixl;
    block_bytes_ = geometry.bytes_per_block_and_layer();
    const int gpu = layers.empty() ? -1 : layers.front().gpu;
    memory_ = Memory(gpu);
    Handle list = nullptr;
    MANTA_TRY(check(nixl.create_reg_dlist(memory_.kind, &list), "create_reg_dlist"));
    for (const CacheLayer& layer : layers) {
      const auto address = reinterpret_cast<uintptr_t>(layer.rows.data);
      layers_.push_back(address);
      const size_t bytes = block_bytes_ * geometry.num_blocks;
      MANTA_TRY(check(nixl.reg_dlist_add_desc(list, address, bytes, memory_.device, nullptr, 0), "reg_dlist_add_desc"));
    }
    if (const Status made = check(nixl.register_mem(agent_->agent, list, agent_->args), "register_mem"); !made.ok()) {
      if (gpu < 0) return made;
      return error(made.error().code, made.error().message + kNoVram);
    }
    nixl.destroy_reg_dlist(list);
    void* bytes = nullptr;
    size_t num_bytes = 0;
    MANTA_TRY(check(nixl.get_local_md(agent_->agent, &bytes, &num_bytes), "get_local_md"));
    card_ = pack_message(AgentCard{{static_cast<const char*>(bytes), num_bytes}, layers_, gpu});
    std::free(bytes);
    return {};
  }

  std::string metadata() const override { return card_; }

  Result<std::unique_ptr<PeerCache>> open(const std::string& metadata, int) override {
    MANTA_ASSIGN(AgentCard card, unpack_message<AgentCard>(metadata, "NIXL agent"));
    if (card.addresses.size() != layers_.size()) {
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("the peer shows {} cache layers, {} are here", card.addresses.size(), layers_.size()));
    }
    char* name = nullptr;
    MANTA_TRY(check(agent_->nixl->load_remote_md(agent_->agent, card.metadata.data(), card.metadata.size(), &name),
                    "load_remote_md"));
    auto peer = std::make_unique<NixlPeer>(agent_, name, std::move(card));
    std::free(name);
    return std::unique_ptr<PeerCache>(std::move(peer));
  }

  Result<std::unique_ptr<BlockTransfer>> read(PeerCache& peer, std::span<const BlockRun> runs) override {
    auto transfer = std::make_unique<NixlTransfer>(agent_);
    MANTA_TRY(transfer->begin(static_cast<NixlPeer&>(peer), runs, layers_, memory_, block_bytes_));
    return std::unique_ptr<BlockTransfer>(std::move(transfer));
  }

 private:
  std::shared_ptr<Agent> agent_ = std::make_shared<Agent>();
  size_t block_bytes_ = 0;
  std::vector<uint64_t> layers_;
  Memory memory_{-1};
  std::string card_;
};

}  // namespace

Result<std::unique_ptr<BlockMover>> make_nixl_mover(const NixlOptions& options) {
  MANTA_ASSIGN(const NixlLibrary* nixl, NixlLibrary::open(options.library));
  auto mover = std::make_unique<NixlMover>(nixl);
  MANTA_TRY(mover->start(options));
  return std::unique_ptr<BlockMover>(std::move(mover));
}

}  // namespace manta::transfer
