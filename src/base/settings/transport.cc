// Settings as JSON for child processes, and their comparison between the nodes of a deployment.
#include <fmt/format.h>

#include "base/settings.h"
#include "base/settings/fields.h"
#include "base/settings/json_fields.h"
#include "base/settings/table.h"
#include "base/settings/value.h"

namespace manta {

using nlohmann::json;

namespace {

json all_fields(const Settings& s) {
  json out = json::object();
  settings::for_each_field(s, [&](const char* key, const auto& field) { out[key] = settings::field_to_json(field); });
  return out;
}

// FNV-1a: short, stable over builds and machines; this finds differences, it does not resist attacks.
uint64_t fnv1a(std::string_view text, uint64_t hash) {
  for (const unsigned char c : text) hash = (hash ^ c) * 0x100000001b3ULL;
  return hash;
}

}  // namespace

std::string to_json(const Settings& settings) {
  return all_fields(settings).dump();
}

Result<Settings> settings_from_json(const std::string& text) {
  const json values = json::parse(text, nullptr, false);
  if (!values.is_object()) return error(ErrorCode::kDataLoss, "settings from the parent process: not a JSON object");
  Settings out;
  std::string problem;
  size_t known = 0;
  settings::for_each_field(out, [&](const char* key, auto& field) {
    const auto it = values.find(key);
    if (it == values.end()) {
      problem = fmt::format("{} is missing", key);
      return;
    }
    ++known;
    try {
      settings::field_from_json(*it, field);
    } catch (const json::exception& e) {
      problem = fmt::format("{}: {}", key, e.what());
    }
  });
  if (problem.empty() && known != values.size()) problem = fmt::format("{} unknown keys", values.size() - known);
  if (!problem.empty())
    return error(ErrorCode::kDataLoss,
                 fmt::format("settings from the parent process: {}; is it the same build?", problem));
  return out;
}

std::vector<std::pair<std::string, std::string>> shared_settings(const Settings& settings) {
  const json values = all_fields(settings);
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& row : settings::table()) {
    if (row.same_on_all_nodes && row.has_field) out.emplace_back(row.key, settings::show(values[row.key]));
  }
  return out;
}

std::string config_hash(const std::vector<std::pair<std::string, std::string>>& shared_settings) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  // Zero bytes keep ("a", "bc") and ("ab", "c") apart.
  for (const auto& [key, value] : shared_settings) hash = fnv1a(key + '\0' + value + '\0', hash);
  return fmt::format("{:016x}", hash);
}

std::string config_hash(const Settings& settings) {
  return config_hash(shared_settings(settings));
}

std::optional<SettingDifference> first_difference(const Settings& here, const Settings& there) {
  const json a = all_fields(here), b = all_fields(there);
  for (const auto& row : settings::table())
    if (row.same_on_all_nodes && row.has_field && a[row.key] != b[row.key])
      return SettingDifference{row.key, settings::show(a[row.key]), settings::show(b[row.key])};
  return std::nullopt;
}

std::vector<std::string> changed_settings(const ParsedSettings& parsed) {
  const json now = all_fields(parsed.settings), defaults = all_fields(Settings{});
  std::vector<std::string> out;
  for (const auto& row : settings::table()) {
    if (!row.has_field || now[row.key] == defaults[row.key]) continue;
    const auto origin = parsed.origins.find(row.key);
    out.push_back(fmt::format("{}={} ({})", row.key, row.secret ? "***" : settings::show(now[row.key]),
                              to_string(origin == parsed.origins.end() ? SettingOrigin{} : origin->second)));
  }
  return out;
}

}  // namespace manta
