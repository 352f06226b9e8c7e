// What one machine and one model can hold of a pd.yaml that was written for a cluster. Pure: the machine is a value.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/settings.h"
#include "cluster/launch/pd_file.h"

namespace manta::cluster {

struct Machine {
  int64_t num_gpus = 0;  // 0: the ranks run on the CPU
  int64_t num_cores = 1;
  std::set<std::string> interfaces;
};

struct ModelLimits {
  int64_t max_model_len = 0;
  int64_t num_experts = 0;  // routed experts of a layer; 0: dense
};

// On a CPU, ranks are there to show and test the real thing, not to be many.
inline constexpr int64_t kMaxCpuPrefillRanks = 2;
inline constexpr int64_t kMaxCpuDecodeRanks = 4;

struct RolePlan {
  RoleConfig config;
  Settings settings;  // of config.engine_kwargs and env_vars, with the model
};

struct Adjustment {
  std::string key, asked, used, why;
};
std::string to_string(const Adjustment& adjustment);  // "key: asked -> used (why)"

// Makes smaller what does not fit, in place, and says so: ranks, dp_size_per_node, redundant experts, max_model_len,
// copies of the front door, network interfaces. Nothing is ever made larger. Empty: everything fits as asked.
std::vector<Adjustment> fit(PdFile& file, std::vector<RolePlan>& roles, const Machine& machine,
                            const ModelLimits& model);

}  // namespace manta::cluster
