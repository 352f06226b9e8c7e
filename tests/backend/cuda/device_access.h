// How tests reach the cuda backend's memory, and whether there is a GPU to test on.
#pragma once

#include "stage_cases.h"

namespace manta::backend::testing {

Access device_access();

// Empty when the backend works here; else why not.
const std::string& no_device();
#define SKIP_WITHOUT_GPU() \
  if (!no_device().empty()) GTEST_SKIP() << no_device()

}  // namespace manta::backend::testing
