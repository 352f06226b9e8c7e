// From a pd.yaml to what `manta up` starts on this machine: the settings of each role and of the router.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/result.h"
#include "base/settings.h"
#include "cluster/launch/fit.h"

namespace manta {

struct UpOptions {
  std::string file;
  std::optional<std::string> model;  // instead of every model_source
  std::optional<std::string> host;
  std::optional<int> port;
  std::optional<std::string> log_level;
  bool scale_to_fit = false;
};

struct UpPlan {
  std::string name;                         // of the application
  std::vector<cluster::RolePlan> roles;     // prefill and decode, or mixed
  Settings router;                          // without the addresses of the roles, which are drawn at start
  std::vector<std::string> notes;           // one line each
  std::vector<cluster::Adjustment> fitted;  // what was made smaller
};

// kInvalidArgument, kUnimplemented: the file asks for what cannot be, all problems in one error. kFailedPrecondition:
// this machine or the model cannot hold it, and scale_to_fit was not given.
Result<UpPlan> make_up_plan(const UpOptions& options, const EnvMap& env);

}  // namespace manta
