// Moves packed expert weights into spare buffers, from another rank or from disk, while steps run. A layer at a time:
// the caller swaps a layer in between two steps, so no step ever waits for more than one layer's swap.
#pragma once

#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "ep/expert_map.h"

namespace manta::ep {

struct ExpertMove {
  int layer = 0;
  int dst_physical = 0;   // global slot to fill
  int logical = 0;        // expert to put there
  int src_rank = -1;      // rank that has the packed bytes; -1 = read and pack from the checkpoint
  int src_physical = -1;  // its slot there
};

struct ExpertMoves {
  Epoch epoch;
  std::vector<ExpertMove> moves;  // ascending by layer
  ExpertMap target;               // the maps once every layer has been swapped
};

class ExpertMover {
 public:
  virtual ~ExpertMover() = default;
  // Starts in the background; kFailedPrecondition while an earlier set is still moving. Collective over the EP group.
  virtual Status begin(const ExpertMoves& moves) = 0;
  // The lowest layer whose bytes are complete on every rank and which was not committed yet; -1 if none.
  virtual int ready_layer() = 0;
  // Swaps that layer's spare buffers in. Between two steps only, from the thread that runs them.
  virtual Status commit(int layer) = 0;
  // Drops what moves for epochs below this one and unparks every wait. Any thread.
  virtual void abort(Epoch epoch) = 0;
};

}  // namespace manta::ep
