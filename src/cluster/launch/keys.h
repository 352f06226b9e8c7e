// The keys a pd.yaml may have, object by object, each with its answer: read, of no effect here (and why), or refused.
#pragma once

#include <span>

namespace manta::cluster {

enum class KeyUse { kRead, kNoted, kRefused };

struct Key {
  const char* name;
  KeyUse use = KeyUse::kRead;
  const char* line = "";  // kNoted, kRefused: said to the user
};

std::span<const Key> file_keys();
std::span<const Key> http_keys();
std::span<const Key> application_keys();
std::span<const Key> args_keys();  // of all builders
std::span<const Key> role_keys();
std::span<const Key> model_keys();
std::span<const Key> deployment_keys();
std::span<const Key> request_router_keys();
std::span<const Key> autoscaling_keys();
std::span<const Key> experimental_keys();
std::span<const Key> runtime_env_keys();

}  // namespace manta::cluster
