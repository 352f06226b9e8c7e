#include "manta/ready.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/log.h"

namespace manta {

void warn_of_meaningless_outputs(const Settings& s, const std::string& role) {
  std::vector<std::string> why;
  if (!s.moe_routing_simulation_strategy.empty()) {
    why.push_back(fmt::format("experts are chosen by {} instead of the router", s.moe_routing_simulation_strategy));
  }
  if (s.load_format == "dummy") why.emplace_back("the weights are random numbers");
  const std::string kv =
      s.kv_transfer_config.kv_connector.value_or("") + s.kv_transfer_config.kv_connector_extra_config.text;
  if (kv.find("DecodeBenchConnector") != std::string::npos) {
    why.emplace_back("DecodeBenchConnector makes up the prompts' cache rows");
  }
  if (why.empty()) return;
  spdlog::warn("{}{}OUTPUTS ARE MEANINGLESS: {}. For benches only", role, role.empty() ? "" : ": ",
               fmt::join(why, ", and "));
}

void print_api(const std::string& url, const std::string& model) {
  fmt::print("  API          {}/v1\n\ntry it:\n", url);
  fmt::print(
      "  curl -N {}/v1/chat/completions -H 'Content-Type: application/json' -d '{{\"model\": \"{}\", \"stream\": "
      "true, \"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'\n\n",
      url, model);
  std::fflush(stdout);
}

// Written beside it and renamed.
Status write_ready_file(const Settings& settings, const std::string& url) {
  if (!settings.ready_file) return {};
  const std::string& path = *settings.ready_file;
  const std::string half = path + ".tmp";
  std::ofstream file(half);
  file << nlohmann::json{{"url", url}, {"pid", ::getpid()}}.dump() << '\n';
  file.close();
  if (file && std::rename(half.c_str(), path.c_str()) == 0) return {};
  return error(ErrorCode::kUnavailable,
               fmt::format("--ready-file {}: cannot be written: {}", path, std::strerror(errno)));
}

}  // namespace manta
