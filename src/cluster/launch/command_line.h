// Settings as the command line that gives them: what one would type to start the same process by hand.
#pragma once

#include <string>
#include <vector>

#include "base/settings.h"

namespace manta::cluster {

// Options for every value that is not its default, in table order; the model first, as the plain argument. Secrets are
// left out: they belong into the environment. parse_command_line(command_line(s), {}) gives s again, but for those.
std::vector<std::string> command_line(const Settings& settings);

}  // namespace manta::cluster
