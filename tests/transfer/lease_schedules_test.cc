// Owner and reader of hand-offs in random histories on a simulated clock: chunks, preemptions, aborts, cancels, blocks
// that other requests take and overwrite the moment they may, readers that sleep past their lease, connections that
// break, messages that are late. Whatever happens, what a reader was told it may use is what the prefill wrote.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "transfer/lease_table.h"
#include "transfer/pull_table.h"

namespace manta::transfer {
namespace {

using std::chrono::milliseconds;

constexpr int kBlockSize = 4;
constexpr int kNumBlocks = 12;  // few: they change hands all the time
constexpr uint64_t kGarbage = ~uint64_t{0};

// A block's rows as one number: which request wrote it, and which block of its sequence.
uint64_t rows_of(int request, int block) {
  return static_cast<uint64_t>(request) * 1000 + block;
}

class World {
 public:
  explicit World(uint32_t seed) : random_(seed), cache_(kNumBlocks, kGarbage) {}

  void run(int num_events) {
    for (int i = 0; i < num_events; ++i) event();
    settle();
  }

  int num_received = 0, num_failed = 0, num_wrong = 0, num_partial = 0;
  LeaseTable leases{LeaseOptions{milliseconds(300), milliseconds(200), milliseconds(150)}};
  PullTable pulls{kBlockSize};
  int num_free() const { return static_cast<int>(std::ranges::count(owner_of_, 0)); }

 private:
  struct Prefill {
    int id = 0, num_tokens = 0, computed = 0;
    bool finished = false;
    std::vector<BlockId> blocks;
  };
  struct Reading {
    PullTable::Read read;
    std::vector<uint64_t> rows;  // block by block, as it stood when it was copied
  };
  struct Wanting {
    std::vector<BlockId> local;
    int num_tokens = 0;
  };

  int pick(int n) { return static_cast<int>(random_() % n); }
  std::string key(int id) const { return "t" + std::to_string(id); }

  void event() {
    now_ += milliseconds(pick(12));
    switch (pick(14)) {
      case 0: begin_prefill(); break;
      case 1:
      case 2:
      case 3: compute_chunk(); break;
      case 4: begin_pull(); break;
      case 5: load(); break;
      case 6:
        if (pick(6) == 0) abort_prefill();
        break;
      case 7:
        if (pick(6) == 0) preempt();
        break;
      case 8:
        if (pick(8) == 0) cancel_pull();
        break;
      case 9: asleep_ = pick(10) == 0; break;
      case 10:
        if (pick(30) == 0) break_connection();
        break;
      case 11: copy_one(); break;
      default: deliver_one(); break;
    }
    if (!asleep_ && pick(4) == 0) leases.heard(connection_, now_);
    leases.advance(now_);
    scribble();
    gather();
  }

  // Everything that still can happen, happens.
  void settle() {
    asleep_ = false;
    while (!prefills_.empty()) {
      gather();
      const int id = prefills_.begin()->first;
      if (prefills_.begin()->second.finished) {
        now_ += milliseconds(50);
        leases.advance(now_);
        gather();
        continue;
      }
      leases.withdraw({1, static_cast<uint64_t>(id)}, "settled");
      give_back(id);
    }
    for (auto& [id, wanting] : wanting_) pulls.cancel({2, static_cast<uint64_t>(id)});
    for (const int id : opened_) pulls.cancel({2, static_cast<uint64_t>(id)});
    for (int i = 0; i < 100; ++i) {
      gather();
      while (!reading_.empty()) copy_one();
      while (!to_owner_.empty() || !to_reader_.empty()) deliver_one();
      now_ += milliseconds(50);
      leases.advance(now_);
    }
    gather();
  }

  void begin_prefill() {
    const int id = next_++;
    Prefill p;
    p.id = id;
    p.num_tokens = 1 + pick(4 * kBlockSize);
    const int num_blocks = (p.num_tokens + kBlockSize - 1) / kBlockSize;
    if (!take(id, num_blocks, p.blocks)) return;
    leases.offer({1, static_cast<uint64_t>(id)}, key(id), {}, 0, false, now_);
    prefills_[id] = p;
  }

  bool take(int id, int count, std::vector<BlockId>& out) {
    if (num_free() < count) return false;
    for (BlockId b = 0; b < kNumBlocks && count > 0; ++b) {
      if (owner_of_[b] != 0) continue;
      owner_of_[b] = id;
      out.push_back(b);
      --count;
    }
    return true;
  }

  void compute_chunk() {
    Prefill* p = some_prefill();
    if (p == nullptr || p->finished) return;
    if (p->blocks.empty() && !take(p->id, (p->num_tokens + kBlockSize - 1) / kBlockSize, p->blocks)) return;
    p->computed = std::min(p->num_tokens, p->computed + 1 + pick(6));
    for (int i = 0; i * kBlockSize < p->computed; ++i) cache_[p->blocks[i]] = rows_of(p->id, i);
    p->finished = p->computed == p->num_tokens && pick(2) == 0;
    leases.offer({1, static_cast<uint64_t>(p->id)}, key(p->id), p->blocks, p->computed, p->finished, now_);
  }

  Prefill* some_prefill() {
    if (prefills_.empty()) return nullptr;
    auto it = prefills_.begin();
    std::advance(it, pick(static_cast<int>(prefills_.size())));
    return &it->second;
  }

  void abort_prefill() {
    Prefill* p = some_prefill();
    if (p == nullptr || p->finished) return;
    leases.withdraw({1, static_cast<uint64_t>(p->id)}, "aborted");
    give_back(p->id);
  }

  void preempt() {
    Prefill* p = some_prefill();
    if (p == nullptr || p->finished) return;
    leases.restart({1, static_cast<uint64_t>(p->id)});
    std::replace(owner_of_.begin(), owner_of_.end(), p->id, 0);
    p->blocks.clear();
    p->computed = 0;
  }

  void give_back(int id) {
    std::replace(owner_of_.begin(), owner_of_.end(), id, 0);
    prefills_.erase(id);
  }

  // Other requests get the free blocks at once and write to them.
  void scribble() {
    for (BlockId b = 0; b < kNumBlocks; ++b) {
      if (owner_of_[b] == 0) cache_[b] = kGarbage;
    }
  }

  void begin_pull() {
    const int id = pick(2) == 0 && next_ > 1 ? 1 + pick(next_ - 1) : next_ + pick(2);  // before or after its prefill
    if (wanting_.contains(id) || opened_.contains(id) || ended_.contains(id)) return;
    opened_.insert(id);
    pulls.open({2, static_cast<uint64_t>(id)}, source(id));
  }

  PullSource source(int id) const { return {"p", 1, "e", key(id), true, 1, 0}; }

  void load() {
    if (opened_.empty()) return;
    const int id = *opened_.begin();
    opened_.erase(id);
    Wanting& w = wanting_[id];
    w.num_tokens = prefills_.contains(id) ? prefills_[id].num_tokens : 1 + pick(4 * kBlockSize);
    for (int i = 0; i * kBlockSize < w.num_tokens; ++i) {
      w.local.push_back(static_cast<BlockId>(local_.size()));
      local_.push_back(kGarbage);
    }
    pulls.load({2, static_cast<uint64_t>(id)}, source(id), w.local, w.num_tokens);
  }

  void cancel_pull() {
    if (!wanting_.empty()) pulls.cancel({2, static_cast<uint64_t>(wanting_.begin()->first)});
  }

  void break_connection() {
    leases.connection_gone(connection_, now_);
    ++connection_;
    to_owner_.clear();
    to_reader_.clear();
    pulls.on_peer_lost("p:1", "broken");
  }

  // A block at a time: the owner may lose the lease in the middle.
  void copy_one() {
    if (reading_.empty() || (asleep_ && pick(4) != 0)) return;
    Reading& r = reading_.front();
    if (r.rows.size() < r.read.blocks.size()) {
      const BlockPair& pair = r.read.blocks[r.rows.size()];
      r.rows.push_back(cache_[pair.remote]);
      local_[pair.local] = r.rows.back();
      return;
    }
    const uint64_t pull = r.read.pull;
    reading_.pop_front();
    pulls.on_read(pull, {}, 1);
  }

  void deliver_one() {
    if (asleep_) return;
    if (pick(2) == 0 && !to_owner_.empty()) {
      const PullTable::Send send = to_owner_.front();
      to_owner_.pop_front();
      const ReaderId reader{connection_, send.pull};
      leases.advance(now_);
      switch (send.kind) {
        case PullTable::Send::Kind::kOpen: leases.open(reader, send.source.key, 1, true, now_); break;
        case PullTable::Send::Kind::kDone: leases.done(reader, send.generation, send.num_bytes); break;
        case PullTable::Send::Kind::kCancel: leases.cancel(reader, now_); break;
      }
    } else if (!to_reader_.empty()) {
      const LeaseMessage m = to_reader_.front();
      to_reader_.pop_front();
      pulls.on_message("p:1", m, kNumBlocks);
    }
  }

  void gather() {
    for (auto& m : leases.take_messages()) {
      if (m.reader.connection == connection_) to_reader_.push_back(m);
    }
    for (auto& send : pulls.take_sends()) to_owner_.push_back(send);
    for (auto& read : pulls.take_reads()) reading_.push_back({read, {}});
    for (const RequestId id : leases.take_released()) give_back(static_cast<int>(id.serial));
    const kv::KvProgress progress = pulls.take_progress();
    for (const RequestId id : progress.received) end_pull(static_cast<int>(id.serial), true, 1 << 20, "");
    for (const auto& f : progress.failed) {
      end_pull(static_cast<int>(f.request.serial), false, f.num_valid_tokens, f.reason);
    }
  }

  void end_pull(int id, bool received, int num_valid, const std::string& reason) {
    ASSERT_TRUE(wanting_.contains(id)) << "told twice, or of something that was never asked";
    const Wanting w = wanting_[id];
    wanting_.erase(id);
    ended_.insert(id);
    ++(received ? num_received : num_failed);
    if (!received && reason.empty()) ++num_partial;
    for (const Reading& r : reading_) {
      for (const BlockPair& pair : r.read.blocks) {
        ASSERT_TRUE(std::ranges::find(w.local, pair.local) == w.local.end()) << "still written to";
      }
    }
    const int num_tokens = std::min(w.num_tokens, num_valid);
    for (int i = 0; i * kBlockSize < num_tokens; ++i) {
      if (local_[w.local[i]] != rows_of(id, i)) ++num_wrong;
    }
  }

  std::mt19937 random_;
  Time now_{};
  int next_ = 1;
  std::vector<uint64_t> cache_;
  std::vector<int> owner_of_ = std::vector<int>(kNumBlocks, 0);  // 0: free
  std::map<int, Prefill> prefills_;
  std::vector<uint64_t> local_;
  std::map<int, Wanting> wanting_;
  std::set<int> opened_, ended_;
  std::deque<Reading> reading_;
  std::deque<PullTable::Send> to_owner_;
  std::deque<LeaseMessage> to_reader_;
  uint64_t connection_ = 1;
  bool asleep_ = false;
};

// Decode may find everything in its own cache, or lose its client, before the prefill has begun.
TEST(LeaseTable, AReaderThatLeftBeforeThePrefillCameKeepsNothing) {
  LeaseTable leases{LeaseOptions{}};
  const Time now{};
  const std::vector<BlockId> blocks = {3, 4};
  const RequestId request{1, 1};
  leases.open({7, 1}, "name", 2, true, now);
  leases.open({7, 2}, "name", 2, true, now);
  leases.cancel({7, 1}, now);
  leases.offer(request, "name", blocks, 8, true, now);
  EXPECT_TRUE(leases.take_released().empty());  // the other one reads
  leases.done({7, 2}, 1, 0);
  EXPECT_EQ(leases.take_released(), std::vector<RequestId>{request});

  leases.open({7, 3}, "next", 1, true, now);
  leases.connection_gone(7, now);
  leases.offer({1, 2}, "next", blocks, 8, true, now);
  EXPECT_EQ(leases.take_released().size(), 1u);
  EXPECT_TRUE(leases.idle());

  leases.open({8, 1}, "never", 1, true, now);
  leases.cancel({8, 1}, now);
  leases.advance(now + LeaseOptions{}.unclaimed);
  EXPECT_TRUE(leases.idle());  // not remembered for ever
}

TEST(LeaseSchedules, NoHistoryGivesAWrongBlock) {
  int received = 0, failed = 0, partial = 0;
  uint64_t expired = 0, refused = 0;
  for (uint32_t seed = 0; seed < 10000; ++seed) {
    World world(seed);
    world.run(500);
    ASSERT_EQ(world.num_wrong, 0) << "seed " << seed;
    ASSERT_EQ(world.num_free(), kNumBlocks) << "seed " << seed;
    ASSERT_EQ(world.leases.num_leases(), 0) << "seed " << seed;
    ASSERT_TRUE(world.leases.idle() && world.pulls.idle()) << "seed " << seed;
    received += world.num_received;
    failed += world.num_failed;
    partial += world.num_partial;
    expired += world.leases.num_expired();
    refused += world.leases.num_refused();
  }
  // Each way to end was taken, often.
  EXPECT_GT(received, 5000);
  EXPECT_GT(failed, 5000);
  EXPECT_GT(partial, 10);
  EXPECT_GT(expired, 1000u);
  EXPECT_GT(refused, 1000u);
}

}  // namespace
}  // namespace manta::transfer
