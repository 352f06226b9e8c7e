// What the scheduler must know of the executor in front of which it plans.
#pragma once

#include "exec/executor.h"
#include "sched/scheduler.h"

namespace manta::engine {

// Everything the executor decides; policy, caching and chunking stay as SchedulerOptions has them.
inline sched::SchedulerOptions scheduler_options(const exec::ExecutorInfo& info) {
  sched::SchedulerOptions options;
  options.num_blocks = info.geometry.num_blocks;
  options.block_size = info.geometry.block_size;
  options.max_num_seqs = info.max_num_seqs;
  options.max_num_batched_tokens = info.max_num_batched_tokens;
  options.max_model_len = info.max_model_len;
  options.num_speculative_tokens = info.num_speculative_tokens;
  options.vocab_size = info.vocab_size;
  return options;
}

}  // namespace manta::engine
