// Where a step stands, for whoever has to name a stuck rank. One writer (the thread that runs steps), any reader.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "base/ids.h"

namespace manta::model {

class StageClock {
 public:
  struct Reading {
    StepId step = 0;
    int layer = -1;
    const char* stage = "idle";  // static string
    uint64_t counter = 0;        // grows at every stage: standing still means stuck
  };

  // What a stage's time is counted as.
  enum class Part : uint8_t { kForward, kDispatch, kCombine, kSample };

  void begin_step(StepId step) {
    step_.store(step, std::memory_order_relaxed);
    enter(-1, "plan");
    spent_ = {};
  }
  void enter(int layer, const char* stage, Part part = Part::kForward) {
    const auto now = std::chrono::steady_clock::now();
    spent_[static_cast<size_t>(part_)] += now - since_;
    since_ = now;
    part_ = part;
    layer_.store(layer, std::memory_order_relaxed);
    stage_.store(stage, std::memory_order_relaxed);
    counter_.store(counter_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  void end_step() { enter(-1, "idle"); }
  // Of the step that ended; the writer's thread.
  int64_t spent_us(Part part) const {
    return std::chrono::duration_cast<std::chrono::microseconds>(spent_[static_cast<size_t>(part)]).count();
  }

  // The fields may come from two neighbouring stages: good enough for a name.
  Reading read() const {
    return {step_.load(std::memory_order_relaxed), layer_.load(std::memory_order_relaxed),
            stage_.load(std::memory_order_relaxed), counter_.load(std::memory_order_relaxed)};
  }

 private:
  std::atomic<StepId> step_{0};
  std::atomic<int> layer_{-1};
  std::atomic<const char*> stage_{"idle"};
  std::atomic<uint64_t> counter_{0};

  // The writer's own.
  Part part_ = Part::kForward;
  std::chrono::steady_clock::time_point since_;
  std::array<std::chrono::steady_clock::duration, 4> spent_{};
};

}  // namespace manta::model
