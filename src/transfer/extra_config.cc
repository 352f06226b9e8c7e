#include "transfer/extra_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <set>

namespace manta::transfer {

using nlohmann::json;

struct ExtraConfig::State {
  std::string connector;
  json object = json::object();
  std::set<std::string> known;

  const json* find(const char* key) {
    known.insert(key);
    const auto it = object.find(key);
    return it == object.end() || it->is_null() ? nullptr : &*it;
  }
  Error invalid(const char* key, const std::string& expected, const json& value) const {
    return error(ErrorCode::kInvalidArgument, fmt::format("kv_connector_extra_config.{} of {} must be {}, got {}", key,
                                                          connector, expected, value.dump().substr(0, 80)));
  }
};

ExtraConfig::ExtraConfig(std::unique_ptr<State> state) : state_(std::move(state)) {}
ExtraConfig::~ExtraConfig() = default;
ExtraConfig::ExtraConfig(ExtraConfig&&) noexcept = default;

Result<ExtraConfig> ExtraConfig::parse(const std::string& connector, const std::string& text) {
  auto state = std::make_unique<State>();
  state->connector = connector;
  if (!text.empty()) state->object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!state->object.is_object()) {
    return error(ErrorCode::kInvalidArgument, "kv_connector_extra_config must be a JSON object, got " + text);
  }
  return ExtraConfig(std::move(state));
}

Result<double> ExtraConfig::number(const char* key, double by_default, double least, double most) {
  const json* value = state_->find(key);
  if (value == nullptr) return by_default;
  const bool fits = value->is_number() && value->get<double>() >= least && value->get<double>() <= most;
  if (!fits) return state_->invalid(key, fmt::format("a number in [{}, {}]", least, most), *value);
  return value->get<double>();
}

Result<bool> ExtraConfig::boolean(const char* key, bool by_default) {
  const json* value = state_->find(key);
  if (value == nullptr) return by_default;
  if (!value->is_boolean()) return state_->invalid(key, "true or false", *value);
  return value->get<bool>();
}

Result<std::vector<std::string>> ExtraConfig::strings(const char* key, std::vector<std::string> by_default) {
  const json* value = state_->find(key);
  if (value == nullptr) return by_default;
  std::vector<std::string> out;
  if (!value->is_array()) return state_->invalid(key, "a list of strings", *value);
  for (const json& item : *value) {
    if (!item.is_string()) return state_->invalid(key, "a list of strings", *value);
    out.push_back(item.get<std::string>());
  }
  return out;
}

Result<std::vector<std::string>> ExtraConfig::objects(const char* key) {
  std::vector<std::string> out;
  const json* value = state_->find(key);
  if (value == nullptr) return out;
  if (!value->is_array()) return state_->invalid(key, "a list of objects", *value);
  for (const json& item : *value) {
    if (!item.is_object()) return state_->invalid(key, "a list of objects", *value);
    out.push_back(item.dump());
  }
  return out;
}

Status ExtraConfig::check_all_read() const {
  for (const auto& [key, value] : state_->object.items()) {
    if (state_->known.contains(key)) continue;
    return error(ErrorCode::kInvalidArgument, fmt::format("kv_connector_extra_config.{}: {} has no such key; it has {}",
                                                          key, state_->connector, fmt::join(state_->known, ", ")));
  }
  return {};
}

Result<LeaseKeys> read_lease_keys(ExtraConfig& extra) {
  MANTA_ASSIGN(const double lease_s, extra.number("kv_lease_duration", 30, 0.1, 86400));
  MANTA_ASSIGN(const double rendezvous_s, extra.number("kv_rendezvous_timeout", 10, 0.01, 86400));
  MANTA_ASSIGN(const bool enforce, extra.boolean("enforce_handshake_compat", true));
  if (!enforce) {
    return error(
        ErrorCode::kInvalidArgument,
        "kv_connector_extra_config.enforce_handshake_compat false: caches that differ cannot be read; remove it");
  }
  const auto ms = [](double s) { return std::chrono::milliseconds(static_cast<int64_t>(s * 1000)); };
  return LeaseKeys{ms(lease_s), ms(rendezvous_s)};
}

}  // namespace manta::transfer
