// A pd.yaml, read: the schema of Ray Serve's LLM applications (prefill, decode, front door), checked whole. What
// engine_kwargs and env_vars mean is for the settings table; here they are carried.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/result.h"

namespace manta::cluster {

// prefill_config, decode_config, or the llm_config of a deployment that does both.
struct RoleConfig {
  std::string role;   // prefill, decode or mixed
  std::string where;  // "prefill_config", for messages
  std::string model_id;
  std::string model_source;
  std::optional<std::string> tokenizer_source;
  nlohmann::json engine_kwargs = nlohmann::json::object();
  EnvMap env_vars;
  std::string policy;  // of the router for this role: round_robin, least_loaded, prefix_affinity
  std::optional<int64_t> dp_size_per_node;
  std::optional<int64_t> num_replicas;  // must then be the number of ranks
};

struct PdFile {
  std::string name;          // of the application
  std::string route_prefix;  // "" or "/prefix"
  std::optional<std::string> host;
  std::optional<int64_t> port;
  int64_t num_front_doors = 1;
  std::vector<RoleConfig> roles;   // prefill and decode, or mixed
  std::vector<std::string> notes;  // what is known and has no effect here, one line each
};

// file: the YAML as JSON. All problems in one error, one line each; an unknown key comes with the nearest known one.
Result<PdFile> parse_pd_file(const nlohmann::json& file);
Result<PdFile> read_pd_file(const std::string& path);

}  // namespace manta::cluster
