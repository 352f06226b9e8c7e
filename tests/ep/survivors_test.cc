#include "ep/survivors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace manta::ep {
namespace {

std::vector<int> ranks_in(unsigned mask, int size) {
  std::vector<int> there;
  for (int rank = 0; rank < size; ++rank) {
    if ((mask >> rank & 1) != 0) there.push_back(rank);
  }
  return there;
}

// A placement as rearrangements may leave it: every expert somewhere, the rest anywhere.
ExpertMap shuffled(int num_logical, int num_redundant, int size, unsigned seed) {
  std::mt19937 draw(seed);
  std::vector<int32_t> placement;
  for (int layer = 0; layer < 3; ++layer) {
    std::vector<int32_t> slots;
    for (int p = 0; p < num_logical + num_redundant; ++p) {
      slots.push_back(p < num_logical ? p : static_cast<int32_t>(draw() % num_logical));
    }
    std::shuffle(slots.begin(), slots.end(), draw);
    placement.insert(placement.end(), slots.begin(), slots.end());
  }
  auto map = expert_map_of(3, num_logical, num_redundant + 1, std::move(placement), Epoch{1});
  EXPECT_TRUE(map.ok()) << map.error().message;
  return *map;
}

int slots_that_change(const ExpertMap& whole, int size, const ExpertMap& map, const std::vector<int>& there) {
  const int before = whole.num_physical / size, after = map.num_physical / static_cast<int>(there.size());
  int changed = 0;
  for (int row = 0; row < whole.num_layers; ++row) {
    for (size_t place = 0; place < there.size(); ++place) {
      for (int slot = 0; slot < before; ++slot) {
        changed += map.physical_to_logical[row * map.num_physical + place * after + slot] !=
                   whole.physical_to_logical[row * whole.num_physical + there[place] * before + slot];
      }
    }
  }
  return changed;
}

// expert_map_of() refuses a placement in which an expert has no slot.
TEST(Survivors, EveryExpertIsSomewhereWhoeverIsMissing) {
  for (const int redundant : {0, 4, 16}) {
    for (unsigned mask = 1; mask < 16; ++mask) {
      const auto there = ranks_in(mask, 4);
      const ExpertMap whole = shuffled(16, redundant, 4, mask);
      const auto map = map_of_survivors(whole, 4, there, Epoch{2});
      ASSERT_TRUE(map.ok()) << map.error().message;
      EXPECT_EQ(map->num_physical,
                slots_with(whole, 4, static_cast<int>(there.size())) * static_cast<int>(there.size()));
      EXPECT_EQ(map->epoch, Epoch{2});
    }
  }
}

TEST(Survivors, NothingChangesWhenAllAreThere) {
  const ExpertMap whole = shuffled(16, 4, 4, 1);
  EXPECT_EQ(map_of_survivors(whole, 4, {0, 1, 2, 3}, Epoch{1})->physical_to_logical, whole.physical_to_logical);
}

TEST(Survivors, WithoutRedundancyEverybodyKeepsAllItHas) {
  const ExpertMap whole = shuffled(16, 0, 4, 1);
  const auto map = map_of_survivors(whole, 4, {0, 2, 3}, Epoch{1});
  ASSERT_TRUE(map.ok());
  EXPECT_EQ(map->num_physical, 18);
  EXPECT_EQ(slots_that_change(whole, 4, *map, {0, 2, 3}), 0);
}

TEST(Survivors, WithRedundancyOnlyWhatIsMissingIsLoadedAndNoRankGrows) {
  const auto whole = linear_expert_map(2, 16, 16, 4, Epoch{1});  // rank r + 2 has what rank r has
  ASSERT_TRUE(whole.ok());
  const auto map = map_of_survivors(*whole, 4, {0, 1, 3}, Epoch{1});
  ASSERT_TRUE(map.ok());
  EXPECT_EQ(map->num_physical, 24);
  EXPECT_EQ(slots_that_change(*whole, 4, *map, {0, 1, 3}), 0) << "every expert has a replica that survived";
  const auto two = map_of_survivors(*whole, 4, {0, 2}, Epoch{1});
  ASSERT_TRUE(two.ok());
  EXPECT_EQ(slots_that_change(*whole, 4, *two, {0, 2}), 2 * 8) << "half of the experts are lost in each of 2 layers";
}

// Ranks that moved experts while others were missing keep all of it, unless an expert would be nowhere.
TEST(Survivors, AReunionLoadsLittle) {
  for (const int redundant : {0, 4, 16}) {
    for (unsigned mask = 1; mask < 15; ++mask) {
      const auto there = ranks_in(mask, 4);
      const int num_there = static_cast<int>(there.size());
      const ExpertMap whole = shuffled(16, redundant, 4, mask);
      const int num_slots = slots_with(whole, 4, num_there) * num_there;
      const ExpertMap now = shuffled(16, num_slots - 16, num_there, mask + 100);
      const auto map = map_of_reunion(whole, 4, there, now);
      ASSERT_TRUE(map.ok()) << map.error().message;
      EXPECT_EQ(map->num_physical, whole.num_physical);
      EXPECT_EQ(map->max_replicas, whole.max_replicas);
      if (redundant < 16) continue;
      EXPECT_EQ(slots_that_change(*map, 4, now, there), 0) << "the others have room for the rest";
    }
  }
}

TEST(Survivors, AReunionWithoutMovesChangesNothing) {
  const ExpertMap whole = shuffled(16, 0, 4, 1);
  const auto there = ranks_in(0b1011, 4);
  const auto now = map_of_survivors(whole, 4, there, Epoch{2});
  ASSERT_TRUE(now.ok());
  EXPECT_EQ(map_of_reunion(whole, 4, there, *now)->physical_to_logical, whole.physical_to_logical);
}

TEST(Survivors, NonsenseIsRefused) {
  const ExpertMap whole = shuffled(16, 0, 4, 1);
  EXPECT_FALSE(map_of_survivors(whole, 4, {}, Epoch{1}).ok());
  EXPECT_FALSE(map_of_survivors(whole, 4, {1, 0}, Epoch{1}).ok());
  EXPECT_FALSE(map_of_survivors(whole, 4, {1, 1}, Epoch{1}).ok());
  EXPECT_FALSE(map_of_survivors(whole, 4, {0, 4}, Epoch{1}).ok());
}

}  // namespace
}  // namespace manta::ep
