#include "router/kv_peers.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"

namespace manta::router {
namespace {

using nlohmann::json;

constexpr size_t kMaxKnown = 1 << 16;  // pairs; engines that start again have new names

std::string difference(const json& prefill, const json& decode) {
  for (const auto& [key, value] : prefill.items()) {
    const auto other = decode.find(key);
    if (other == decode.end() || *other != value) {
      return fmt::format("{} is {} there and {} at decode", key, value.dump(),
                         other == decode.end() ? "missing" : other->dump());
    }
  }
  return {};
}

std::string make_params(const std::string& prefill_text, const std::string& decode_text) {
  const json prefill = json::parse(prefill_text, nullptr, /*allow_exceptions=*/false);
  const json decode = json::parse(decode_text, nullptr, /*allow_exceptions=*/false);
  const bool both_pull =
      prefill.is_object() && prefill.contains("engine_id") && decode.is_object() && decode.contains("engine_id");
  if (!both_pull) return {};
  const std::string differs =
      difference(prefill.value("compatibility", json::object()), decode.value("compatibility", json::object()));
  if (!differs.empty()) {
    spdlog::error("prefill engine {}'s cache rows do not fit decode engine {}: {}; decode computes such prompts itself",
                  prefill["engine_id"].dump(), decode["engine_id"].dump(), differs);
    return {};
  }
  return json{{"do_remote_prefill", true},
              {"do_remote_decode", false},
              {"remote_engine_id", prefill["engine_id"]},
              {"remote_host", prefill.value("host", "")},
              {"remote_port", prefill.value("port", 0)}}
      .dump();
}

}  // namespace

const std::string& KvPeers::pull_params(const std::string& prefill, const std::string& decode) {
  if (num_known_ >= kMaxKnown) known_.clear(), num_known_ = 0;
  auto& of_prefill = known_[prefill];
  const auto known = of_prefill.find(decode);
  if (known != of_prefill.end()) return known->second;
  ++num_known_;
  return of_prefill.emplace(decode, make_params(prefill, decode)).first->second;
}

}  // namespace manta::router
