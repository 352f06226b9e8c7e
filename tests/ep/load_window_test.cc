#include "ep/eplb/load_window.h"

#include <gtest/gtest.h>

namespace manta::ep {
namespace {

const ExpertMap& map() {
  static const ExpertMap made = *linear_expert_map(2, 4, 2, 2, {});  // slots 4 and 5 repeat experts 0 and 1
  return made;
}

std::vector<LayerLoad> one_token_each() {
  return {{0, {1, 1, 1, 1, 1, 1}}, {1, {0, 0, 0, 2, 0, 3}}};
}

TEST(LoadWindow, AddsReplicasToTheirExpert) {
  LoadWindow window(8, 8, 2, 4);
  window.step(one_token_each(), map());
  EXPECT_EQ(window.loads()[0], (std::vector<int64_t>{2, 2, 1, 1}));
  EXPECT_EQ(window.loads()[1], (std::vector<int64_t>{0, 3, 0, 2}));
}

TEST(LoadWindow, FirstTimeAfterAQuarterThenEveryInterval) {
  LoadWindow window(100, 8, 2, 4);
  int steps = 0;
  while (!window.due()) window.step({}, map()), ++steps;
  EXPECT_EQ(steps, 2);
  window.restart();
  for (steps = 0; !window.due(); ++steps) window.step({}, map());
  EXPECT_EQ(steps, 8);
}

TEST(LoadWindow, LooksOnlyAtTheLastStepsBeforeItIsDue) {
  LoadWindow window(3, 10, 2, 4);
  window.restart();
  while (!window.due()) window.step(one_token_each(), map());
  EXPECT_EQ(window.loads()[0], (std::vector<int64_t>{6, 6, 3, 3}));
  window.restart();
  EXPECT_FALSE(window.recording());
  EXPECT_EQ(window.loads()[0], (std::vector<int64_t>{0, 0, 0, 0}));
}

TEST(LoadWindow, DummyStepsCountAsStepsAndHaveNoLoad) {
  LoadWindow window(4, 4, 2, 4);
  window.step(one_token_each(), map());
  const auto before = window.loads();
  window.restart();
  window.step({}, map());
  window.step(one_token_each(), map());
  EXPECT_EQ(window.loads(), before);
  EXPECT_EQ(window.steps_to_go(), 2);
}

}  // namespace
}  // namespace manta::ep
