// The environment of this process, read once at start. Nothing else in manta calls getenv: what a variable means
// stands in the settings table (base/settings/), and tests pass a map of their own.
#pragma once

#include <functional>
#include <map>
#include <string>

namespace manta {

using EnvMap = std::map<std::string, std::string, std::less<>>;

// NAME=value pairs of this process. A later entry of the same name is dropped, as getenv would see it.
EnvMap read_environment();

}  // namespace manta
