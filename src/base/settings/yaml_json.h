// YAML text as JSON, for --config files and pd.yaml.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"

namespace manta::settings {

// Plain scalars become null, booleans, numbers or text as YAML 1.2's core schema says; quoted ones stay text.
// Refused: a key given twice in one mapping, keys that are no scalars, more than 100,000 nodes (aliases can make a
// small file that large), nesting deeper than 64. An error names line and column.
Result<nlohmann::json> yaml_to_json(const std::string& text);

// The same for a file; an error names it.
Result<nlohmann::json> read_yaml(const std::string& path);

}  // namespace manta::settings
