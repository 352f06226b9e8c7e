// The reader's side of a hand-off, without sockets, threads or clocks. A pull is opened when its request arrives (so
// that the owner keeps the rows while the request waits), gets local blocks when the scheduler has room, reads what is
// offered as it is offered, says done, and counts only once the owner has confirmed. Whatever goes wrong ends in
// exactly one word to the scheduler, and only when nothing writes to the local blocks any more.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/kv_actions.h"
#include "transfer/lease_table.h"

namespace manta::transfer {

struct BlockPair {
  BlockId remote = 0;
  BlockId local = 0;
  bool operator==(const BlockPair&) const = default;
};

// Where the rows are: goes through the scheduler as KvAction::remote.
struct PullSource {
  std::string host;
  int32_t port = 0;
  std::string engine_id;
  std::string key;
  bool wait = false;  // the prefill may not be known there yet
  int32_t num_readers = 1;
  int32_t first_block = 0;  // of the sequence: those before it are here already
  std::string peer() const { return host + ":" + std::to_string(port); }
};
std::string encode(const PullSource& source);
Result<PullSource> decode_pull_source(std::string_view bytes);

class PullTable {
 public:
  explicit PullTable(int block_size) : block_size_(block_size) {}

  // ---- the scheduler ----
  void open(RequestId request, PullSource source);
  // blocks: local ones for the sequence's blocks [source.first_block, …); num_tokens: of the sequence, wanted.
  void load(RequestId request, PullSource source, std::vector<BlockId> blocks, int num_tokens);
  void cancel(RequestId request);

  // ---- the owner ----
  void on_message(const std::string& peer, const LeaseMessage& message, int num_remote_blocks);
  void on_peer_lost(const std::string& peer, const std::string& reason);

  // ---- the mover ----
  void on_read(uint64_t pull, const Status& status, uint64_t num_bytes);

  // ---- what follows from it ----
  struct Read {
    uint64_t pull = 0;
    std::string peer;
    std::vector<BlockPair> blocks;
  };
  struct Send {
    enum class Kind : uint8_t { kOpen, kDone, kCancel };
    Kind kind = Kind::kOpen;
    uint64_t pull = 0;
    PullSource source;        // kOpen: all of it; else its peer
    uint64_t generation = 0;  // kDone
    uint64_t num_bytes = 0;   // kDone
  };
  std::vector<Read> take_reads() { return std::exchange(reads_, {}); }
  std::vector<Send> take_sends() { return std::exchange(sends_, {}); }
  kv::KvProgress take_progress() { return std::exchange(progress_, {}); }
  bool has_progress() const { return !progress_.empty(); }
  bool uses(const std::string& peer) const;
  bool idle() const { return pulls_.empty(); }
  uint64_t bytes_received() const { return bytes_received_; }
  uint64_t num_failed() const { return num_failed_; }

 private:
  struct Pull {
    RequestId request;
    PullSource source;
    bool loading = false;  // the scheduler waits for a word
    std::vector<BlockId> local;
    int num_wanted = 0;  // tokens

    uint64_t generation = 0;
    std::vector<BlockId> remote;
    int num_offered = 0;  // tokens
    bool final = false;

    int num_read_blocks = 0;  // of local
    bool reading = false;
    bool void_read = false;  // what is being read is of blocks that are gone
    bool confirming = false;
    bool ended = false;  // and waits for the read to return
    std::string reason;
    uint64_t num_bytes = 0;
  };
  using Pulls = std::unordered_map<uint64_t, Pull>;

  Pulls::iterator find(RequestId request);
  void advance(Pulls::iterator it);
  void fail(Pulls::iterator it, std::string reason, bool tell_owner);
  void finish(Pulls::iterator it);
  void send(Send::Kind kind, uint64_t id, const Pull& pull);

  int block_size_;
  Pulls pulls_;
  std::unordered_map<RequestId, uint64_t> by_request_;
  uint64_t next_pull_ = 1;
  std::vector<Read> reads_;
  std::vector<Send> sends_;
  kv::KvProgress progress_;
  uint64_t bytes_received_ = 0;
  uint64_t num_failed_ = 0;
};

}  // namespace manta::transfer
