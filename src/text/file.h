#pragma once

#include <string>

#include "base/result.h"

namespace manta::text {

// A whole file. kNotFound: no such file. kUnavailable: it cannot be read.
Result<std::string> read_file(const std::string& path);

}  // namespace manta::text
