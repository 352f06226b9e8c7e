#include "engine/engine_load.h"

#include <algorithm>

namespace manta::engine {

void EngineLoad::welcomed(const Welcome& welcome) {
  block_size_ = welcome.block_size;
  max_num_seqs_ = welcome.max_num_seqs;
  load_.num_blocks = load_.num_free_blocks = welcome.num_blocks;
}

void EngineLoad::sent(int64_t num_tokens) {
  ++num_in_flight_;
  num_tokens_ += num_tokens;
  num_unseen_tokens_ += num_tokens;
}

void EngineLoad::seen(int64_t num_tokens) {
  num_unseen_tokens_ -= num_tokens;
}

void EngineLoad::ended(int64_t num_tokens) {
  --num_in_flight_;
  num_tokens_ -= num_tokens;
}

void EngineLoad::heard(const Load& load) {
  if (load.num_steps < load_.num_steps) return;  // overtaken on the way
  load_ = load;
  const int64_t held = int64_t{load.num_blocks - load.num_free_blocks} * block_size_;
  const int64_t ours = num_tokens_ - num_unseen_tokens_;
  // The last block of a request is half empty on average.
  const int64_t slack = num_in_flight_ * block_size_ / 2;
  num_foreign_tokens_ = std::max<int64_t>(0, held - ours - slack);
}

EngineLoad::Cost EngineLoad::cost(int64_t num_tokens) const {
  Cost cost{false, num_tokens_ + num_foreign_tokens_};
  if (block_size_ == 0) return cost;
  const int64_t needed_blocks = (num_unseen_tokens_ + num_tokens) / block_size_ + 1;
  const int num_foreign = std::max(0, load_.num_running + load_.num_waiting - num_in_flight_);
  cost.would_wait = needed_blocks > load_.num_free_blocks || num_in_flight_ + num_foreign >= max_num_seqs_;
  return cost;
}

}  // namespace manta::engine
