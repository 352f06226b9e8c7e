#pragma once

#include <cstddef>
#include <string>

#include "base/result.h"

namespace manta::model {

// A whole small file. kNotFound: there is none. kInvalidArgument: larger than max_bytes. kUnavailable: cannot be read.
Result<std::string> read_small_file(const std::string& path, size_t max_bytes);

}  // namespace manta::model
