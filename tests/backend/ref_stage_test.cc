// The stage cases on the reference itself: its other form of attention against the absorbed one, another number of
// threads bit for bit, and hostile memory. What its numbers mean is settled by ref_golden_test.cc.
#include <gtest/gtest.h>

#include "backend/ref/ref_backend.h"
#include "stage_cases.h"

namespace manta::backend::testing {
namespace {

TEST(RefStages, ThreadsChangeNoBit) {
  run_stage_cases({.make = [] { return ref::make_ref_backend({.num_threads = 3}); }, .bounds = {}});
}

TEST(RefStages, UnabsorbedAttentionAgreesWithAbsorbed) {
  run_stage_cases({.make = [] { return ref::make_ref_backend({.num_threads = 2, .batch_invariant = false}); },
                   .bounds = {.stream = 2e-6}});
}

TEST(RefBackend, OptionsAreChecked) {
  EXPECT_EQ(ref::make_ref_backend({.fp8_activations = "static"}).error().message,
            "fp8_activations 'static': must be none or dynamic");
  EXPECT_EQ(ref::make_ref_backend({.num_threads = -1}).error().message,
            "cpu_threads -1: must be 0 (all cores) or more");
  EXPECT_EQ(make_backend("tpu", {}).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace manta::backend::testing
