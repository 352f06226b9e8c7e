// Logging for every process. One line per event, on stderr, prefixed with what the process is ("engine decode 3"),
// so that the interleaved output of a deployment can be read. Level: MANTA_LOG_LEVEL (also VLLM_LOGGING_LEVEL).
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace manta {

// Call once, first thing in main. process: "serve", "api", "engine decode 3", …
void init_logging(const std::string& process, const std::string& level);

}  // namespace manta
