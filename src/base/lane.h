// A place where stages run in order: a compute stream and a communication stream on a GPU, a thread team on a CPU.
// Opaque outside the backend that made it. One lane per microbatch in flight; a lane is used by one host thread.
#pragma once

namespace manta {

struct Lane {
  virtual ~Lane() = default;
};

}  // namespace manta
