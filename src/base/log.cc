#include "base/log.h"

#include <spdlog/sinks/ansicolor_sink.h>

#include <memory>

namespace manta {

void init_logging(const std::string& process, const std::string& level) {
  auto sink = std::make_shared<spdlog::sinks::ansicolor_stderr_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("manta", std::move(sink));
  logger->set_pattern("%m-%d %H:%M:%S.%e %^%L%$ [" + process + "] %v");
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  spdlog::set_level(spdlog::level::from_str(level));
}

}  // namespace manta
