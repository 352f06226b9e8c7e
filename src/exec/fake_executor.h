// An executor without a model: it emits scripted tokens and checks every plan it is given. The engine, the api and
// the scheduler's tests run against it.
//
// It keeps a cache of one 64-bit row per token, the hash of the sequence up to there, written and read through the
// block tables it is told. A plan that names a wrong block, slot, position or bound therefore fails the step instead
// of passing unseen.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "exec/executor.h"

namespace manta::exec {

struct FakeExecutorOptions {
  kv::CacheGeometry geometry;  // only num_blocks and block_size matter
  int max_num_seqs = 8;
  int max_num_batched_tokens = 512;
  int max_model_len = 4096;
  int vocab_size = 4096;
  int num_speculative_tokens = 0;
  int max_in_flight = 2;

  // The i-th generated token of a sequence is script[i % size], counted from the end of its prompt: a sequence that
  // was preempted or resubmitted continues its text.
  std::vector<TokenId> script = {1};
  // Overrides the script: the token after a prefix, given the hash of that prefix and its length.
  std::function<TokenId(uint64_t prefix_hash, int num_tokens)> next_token;
  // Whether the draft for the token at this position is right. Default: two of three.
  std::function<bool(int position)> draft_is_right;

  std::chrono::microseconds step_duration{0};  // 0 = ready when submit returns; steps queue up behind each other
  int ep_rank = -1;                            // >= 0: pretends to be this rank of an expert-parallel group
  bool verify_all_rows = false;                // compare every row of a sequence in every step, not only the last one
};

class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(FakeExecutorOptions options);
  ~FakeExecutor() override;

  const ExecutorInfo& info() const override;
  Result<Ticket> submit(sched::StepPlan plan) override;
  Result<StepResult> collect(Ticket ticket, Deadline deadline) override;
  Status drain() override;
  void on_ready(std::function<void()> wake) override;
  Status form_group(const ep::EpTopology& topology) override;
  void abort(Epoch epoch) override;
  StageStamp where() const override;

  // Faults, any thread. A step that failed leaves the executor unusable, as with a real one.
  void fail_at(StepId step, Error error);
  void stall_at(StepId step);  // this step and later ones never get ready, until unstall()
  void unstall();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace manta::exec
