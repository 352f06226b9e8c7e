#include "ep/eplb/migration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace manta::ep {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Migration, OnlyWhatChangesMovesAndALayerAtATime) {
  // 3 layers, 4 experts on 2 ranks of 3 slots.
  ExpertMap now = *linear_expert_map(3, 4, 2, 2, Epoch{1});
  std::vector<int32_t> placement = now.physical_to_logical;  // 0 1 2 | 3 0 1 in each layer
  placement[6 + 2] = 3;                                      // layer 1, rank 0, slot 2
  placement[6 + 3] = 2;                                      // layer 1, rank 1, slot 0
  placement[12 + 5] = 2;                                     // layer 2, rank 1, slot 2
  const auto target = expert_map_of(3, 4, now.max_replicas, placement, Epoch{1});
  ASSERT_TRUE(target.ok()) << target.error().message;
  EXPECT_THAT(layers_to_migrate(now, *target), ElementsAre(1, 2));
  EXPECT_THAT(moves_of(now, *target, 2, 0, 2), IsEmpty());
  const std::vector<ExpertMove> moves = moves_of(now, *target, 1, 1, 2);
  ASSERT_EQ(moves.size(), 1u);
  EXPECT_EQ(moves[0].slot, 0);
  EXPECT_EQ(moves[0].logical, 2);
  const int32_t* address = now.physical_to_logical.data();
  adopt_layer(now, *target, 1);
  EXPECT_THAT(layers_to_migrate(now, *target), ElementsAre(2));
  adopt_layer(now, *target, 2);
  EXPECT_EQ(now.physical_to_logical, target->physical_to_logical);
  EXPECT_EQ(now.logical_to_physical, target->logical_to_physical);
  EXPECT_EQ(now.logical_replica_count, target->logical_replica_count);
  EXPECT_EQ(now.physical_to_logical.data(), address);
}

}  // namespace
}  // namespace manta::ep
