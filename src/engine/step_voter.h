// One rank's side of the step agreement: what it has voted, what was decided. No clocks, no threads, no sockets.
#pragma once

#include <optional>

#include "base/ids.h"
#include "cluster/messages.h"

namespace manta::engine {

class StepVoter {
 public:
  void form(Epoch epoch);  // a group was formed: its step 1 is next
  void dissolve() { form(Epoch{}); }
  bool formed() const { return epoch_ != Epoch{}; }
  Epoch epoch() const { return epoch_; }
  uint64_t step() const { return step_; }  // voted on, or decided and to be run

  // The vote to send now (step is filled in); nullopt when it would say nothing new, or the step is decided.
  std::optional<cluster::Vote> next(cluster::Vote vote);
  // From the coordinator. Ignored when it is of another group or step: the answer to what went before.
  void on_decision(Epoch epoch, const cluster::Decision& decision);
  bool decided() const { return decision_.has_value(); }
  // The decision of step(), once; the step after it is up then.
  std::optional<cluster::Decision> take_decision();

 private:
  Epoch epoch_;
  uint64_t step_ = 1;
  std::optional<cluster::Vote> sent_;
  std::optional<cluster::Decision> decision_;
};

}  // namespace manta::engine
