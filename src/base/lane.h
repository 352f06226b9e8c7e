// A place where stages run in order: a compute stream and a communication stream on a GPU, a thread team on a CPU.
// Opaque outside the backend that made it. One lane per microbatch in flight; a lane is used by one host thread.
#pragma once

#include <cstdint>
#include <functional>

namespace manta {

struct Lane {
  virtual ~Lane() = default;

  // For work on host memory: body(begin, end) over pieces of at most `grain` indices that together are [0, count),
  // on the lane's threads; returns when all are done. A lane without threads of its own does it in the caller.
  virtual void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    (void)grain;
    if (count > 0) body(0, count);
  }
};

}  // namespace manta
