#include "base/ids.h"

#include <fmt/format.h>

namespace manta {

std::string to_string(RequestId id) {
  return fmt::format("{:x}-{}", id.client, id.serial);
}

}  // namespace manta
