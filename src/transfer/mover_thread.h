// Runs reads, several at a time, on one thread of its own. Parked when there are none; while some are under way and
// cannot say when they are over, it looks every 100 us.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "transfer/block_mover.h"

namespace manta::transfer {

// A peer, opened by the thread when it is first read.
struct MoverPeer {
  std::string metadata;
  int num_blocks = 0;
  std::unique_ptr<PeerCache> cache;  // the thread's own
};

class MoverThread {
 public:
  struct Job {
    uint64_t id = 0;
    std::shared_ptr<MoverPeer> peer;
    std::vector<BlockPair> blocks;
  };
  using Done = std::function<void(uint64_t id, const Status& status, size_t num_blocks)>;  // on the thread

  MoverThread(BlockMover& mover, Done done);
  ~MoverThread();  // ends what is under way, without a word

  void submit(Job job);  // any thread

 private:
  struct Running {
    Job job;
    std::unique_ptr<BlockTransfer> transfer;
  };
  void run(std::stop_token stop);
  void begin(Job job);
  void poll();

  BlockMover& mover_;
  Done done_;
  std::vector<Running> running_;  // the thread's own

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::vector<Job> jobs_;  // under mutex_
  std::jthread thread_;    // last
};

}  // namespace manta::transfer
