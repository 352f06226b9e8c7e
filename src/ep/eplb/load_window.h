// What this rank has seen of the experts' load, and when the next rearrangement is due. Steps are the group's: all
// ranks count the same ones, so all are due at the same step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ep/expert_map.h"

namespace manta::ep {

class LoadWindow {
 public:
  // Due every step_interval steps; the first time after a quarter of it, so that a young deployment does not stay
  // unbalanced for long. Looks at the last window_size steps before that, at most at one interval.
  LoadWindow(int64_t window_size, int64_t step_interval, int num_layers, int num_logical);

  // One step of the group has ended. loads: tokens this rank routed to each physical expert, by layer; empty for a
  // dummy step, which counts as a step and has no load.
  void step(std::span<const LayerLoad> loads, const ExpertMap& map);

  // Whether the load of the next step is looked at: a backend need not count otherwise.
  bool recording() const { return steps_ + window_ >= interval_; }
  bool due() const { return steps_ >= interval_; }
  int64_t steps_to_go() const { return interval_ - steps_; }

  // Tokens of each logical expert, [num_layers][num_logical], of this rank alone: the group adds them up.
  const std::vector<std::vector<int64_t>>& loads() const { return loads_; }
  void restart();  // after a rearrangement, or after deciding against one

 private:
  int64_t window_;
  int64_t interval_;
  int64_t steps_;
  std::vector<std::vector<int64_t>> loads_;
};

}  // namespace manta::ep
