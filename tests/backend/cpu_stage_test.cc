// Every stage of the cpu backend against ref, on every instruction set this machine has.
#include <gtest/gtest.h>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kernels.h"
#include "stage_cases.h"

namespace manta::backend::testing {
namespace {

// bf16 has 8 bits: rounding a row once is a relative error of 1.7e-3. attn_attend, the longest chain of roundings,
// rounds the query, the absorbed query, latents, softmax weights, latent sums and values.
constexpr StageBounds kBounds = {
    .stream = 1.2e-2, .cache = 4e-3, .logits = 4e-3, .router_margin = 1e-5, .topk_weight = 1e-5};

class CpuStages : public ::testing::TestWithParam<std::string> {};

TEST_P(CpuStages, MatchRef) {
  run_stage_cases({.make = [] { return cpu::make_cpu_backend({.num_threads = 2}, GetParam()); }, .bounds = kBounds});
}

// Long pieces of prompts take the other form of attention, short ones and decode rows do not.
TEST(CpuUnabsorbed, MatchesRef) {
  run_stage_cases(
      {.make = [] { return cpu::make_cpu_backend({.num_threads = 2, .batch_invariant = false}); }, .bounds = kBounds});
}

INSTANTIATE_TEST_SUITE_P(Targets, CpuStages, ::testing::ValuesIn([] {
                           std::vector<std::string> names;
                           const cpu::TargetList list = cpu::available_kernels();
                           for (int i = 0; i < list.count; ++i) names.push_back(list.tables[i]->name);
                           return names;
                         }()),
                         [](const auto& info) { return info.param; });

TEST(CpuBackend, OptionsAreChecked) {
  EXPECT_EQ(cpu::make_cpu_backend({.fp8_activations = "dynamic"}).error().code, ErrorCode::kUnimplemented);
  EXPECT_EQ(cpu::make_cpu_backend({.num_threads = -1}).error().message,
            "cpu_threads -1: must be 0 (all cores) or more");
  EXPECT_EQ(cpu::make_cpu_backend({}, "amx").error().message, "this processor cannot run the kernels 'amx'");
  auto backend = make_backend("cpu", {.num_threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.error().message;
  EXPECT_EQ((*backend)->caps().name, "cpu");
  EXPECT_TRUE((*backend)->caps().batch_invariant);
}

}  // namespace
}  // namespace manta::backend::testing
