// What the ranks of a lock-step group do next: every rank votes for a step, one decision goes back to all. The whole
// protocol, without sockets or clocks. O(1) per vote, O(ranks) per decision. Ranks here are places in the group, from
// 0.
//
//   running   somebody has work: the step is decided as soon as every rank has voted
//   paused    every rank has voted and nobody has work: the decision is withheld, and that is all the ranks notice.
//             The first vote with work decides the step and so wakes them.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "cluster/messages.h"

namespace manta::cluster {

class Agreement {
 public:
  // A group was put together: what was voted before is void, step 1 is next.
  void reset(Epoch epoch, int num_ranks);
  void dissolve() { reset(Epoch{}, 0); }  // no group now: every vote is stale
  bool formed() const { return !ballots_.empty(); }
  Epoch epoch() const { return epoch_; }

  enum class Outcome : uint8_t {
    kPending,  // counted; others are missing, or nobody has work
    kDecided,  // decision_for() tells every rank
    kLate,     // the step is decided already: that decision is on its way
    kStale,    // of another epoch: the sender must be told the current one
  };
  // kInvalidArgument for what no rank can mean: it should be cut off.
  Result<Outcome> vote(int rank, Epoch epoch, const Vote& vote);

  Decision decision_for(int rank) const;   // of the last decided step
  uint64_t step() const { return step_; }  // the one being voted on

  // Ranks that the others wait for: somebody has work, and these have not voted.
  std::vector<int> owing() const;

 private:
  struct Ballot {
    uint64_t step = 0;  // of the vote; it is counted if that is step_
    Vote vote;
    bool counted = false;  // its work is part of the last decision
  };
  bool decide();

  Epoch epoch_;
  std::vector<Ballot> ballots_;  // by rank
  uint64_t step_ = 1;
  int num_voted_ = 0;
  int num_working_ = 0;  // of those
  int num_leaving_ = 0;  // of those
  Decision decision_;
};

}  // namespace manta::cluster
