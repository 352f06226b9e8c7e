#include "ep/survivors.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

namespace manta::ep {
namespace {

constexpr int32_t kFree = -1;

// One layer's slots, [num_there * num_slots], filled up.
class Layer {
 public:
  Layer(int num_logical, int num_there, int num_slots)
      : num_slots_(num_slots), slots_(num_there * num_slots, kFree), copies_(num_logical, 0) {}

  void keep(int place, int slot, int32_t logical) { put(place * num_slots_ + slot, logical); }

  // Slots are taken from the last of each rank on, rank by rank, so that no rank gets more than its share.
  void add_missing(const std::vector<int>& places) {
    for (const bool only_free : {true, false}) {
      for (int slot = num_slots_ - 1; slot >= 0; --slot) {
        for (const int place : places) {
          const int32_t missing = first_missing();
          if (missing == num_logical()) return;
          const int at = place * num_slots_ + slot;
          const bool usable = only_free ? slots_[at] == kFree : slots_[at] != kFree && copies_[slots_[at]] > 1;
          if (usable) put(at, missing);
        }
      }
    }
  }

  void repeat_in_free_slots() {
    for (size_t at = 0; at < slots_.size(); ++at) {
      if (slots_[at] != kFree) continue;
      const auto rank = slots_.begin() + static_cast<ptrdiff_t>(at) / num_slots_ * num_slots_;
      int32_t best = 0;  // of the fewest copies, and not on this rank where there is a choice
      const auto cost = [&](int32_t logical) {
        return std::pair(std::find(rank, rank + num_slots_, logical) != rank + num_slots_, copies_[logical]);
      };
      for (int32_t logical = 1; logical < num_logical(); ++logical) {
        if (cost(logical) < cost(best)) best = logical;
      }
      put(static_cast<int>(at), best);
    }
  }

  const std::vector<int32_t>& slots() const { return slots_; }

 private:
  int32_t num_logical() const { return static_cast<int32_t>(copies_.size()); }
  int32_t first_missing() const {
    return static_cast<int32_t>(std::find(copies_.begin(), copies_.end(), 0) - copies_.begin());
  }
  void put(int at, int32_t logical) {
    if (slots_[at] != kFree) --copies_[slots_[at]];
    slots_[at] = logical;
    ++copies_[logical];
  }

  const int num_slots_;
  std::vector<int32_t> slots_;
  std::vector<int> copies_;  // of each expert
};

}  // namespace

int slots_with(const ExpertMap& whole, int size, int num_there) {
  return std::max(whole.num_physical / size, (whole.num_logical + num_there - 1) / num_there);
}

Result<ExpertMap> map_of_survivors(const ExpertMap& whole, int size, const std::vector<int>& there, Epoch epoch) {
  const bool valid = !there.empty() && there.front() >= 0 && there.back() < size &&
                     std::is_sorted(there.begin(), there.end(), std::less_equal<>());
  if (!valid) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("{} of {} ranks are there: they must be ascending", there.size(), size));
  }
  const int num_there = static_cast<int>(there.size()), before = whole.num_physical / size;
  const int num_slots = slots_with(whole, size, num_there);
  std::vector<int> places(num_there);
  std::iota(places.begin(), places.end(), 0);
  std::vector<int32_t> placement;
  for (int row = 0; row < whole.num_layers; ++row) {
    Layer layer(whole.num_logical, num_there, num_slots);
    for (int place = 0; place < num_there; ++place) {
      const int32_t* had = &whole.physical_to_logical[static_cast<size_t>(row) * whole.num_physical];
      for (int slot = 0; slot < before; ++slot) layer.keep(place, slot, had[there[place] * before + slot]);
    }
    layer.add_missing(places);
    layer.repeat_in_free_slots();
    placement.insert(placement.end(), layer.slots().begin(), layer.slots().end());
  }
  const int most_copies = num_there * num_slots - whole.num_logical + 1;  // in any placement
  return expert_map_of(whole.num_layers, whole.num_logical, most_copies, std::move(placement), epoch);
}

Result<ExpertMap> map_of_reunion(const ExpertMap& whole, int size, const std::vector<int>& there,
                                 const ExpertMap& now) {
  const int num_slots = whole.num_physical / size, num_slots_now = now.num_physical / static_cast<int>(there.size());
  std::vector<int> back, all(size);
  std::iota(all.begin(), all.end(), 0);
  std::set_difference(all.begin(), all.end(), there.begin(), there.end(), std::back_inserter(back));
  std::vector<int32_t> placement = whole.physical_to_logical;
  for (int row = 0; row < whole.num_layers; ++row) {
    Layer layer(whole.num_logical, size, num_slots);
    int32_t* slots = &placement[static_cast<size_t>(row) * whole.num_physical];
    const int32_t* has = &now.physical_to_logical[static_cast<size_t>(row) * now.num_physical];
    for (size_t place = 0; place < there.size(); ++place) {
      std::copy_n(has + place * num_slots_now, num_slots, slots + there[place] * num_slots);
    }
    for (int at = 0; at < whole.num_physical; ++at) layer.keep(at / num_slots, at % num_slots, slots[at]);
    layer.add_missing(back);
    layer.add_missing(there);
    std::copy(layer.slots().begin(), layer.slots().end(), slots);
  }
  return expert_map_of(whole.num_layers, whole.num_logical, whole.max_replicas, std::move(placement), whole.epoch);
}

}  // namespace manta::ep
