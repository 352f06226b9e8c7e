// What is said at the start, and when everything answers: to the terminal, and to whoever waits for --ready-file.
#pragma once

#include <string>

#include "base/result.h"
#include "base/settings.h"

namespace manta {

// One loud line when the settings make them so; `role` before it, unless empty.
void warn_of_meaningless_outputs(const Settings& settings, const std::string& role);

// The API's address and a curl line that works.
void print_api(const std::string& url, const std::string& model);

// Nothing when settings.ready_file is not given. Whoever waits for the file finds it whole.
Status write_ready_file(const Settings& settings, const std::string& url);

}  // namespace manta
