#include "cluster/launch/command_line.h"

#include <fmt/format.h>

#include "base/settings/fields.h"
#include "base/settings/json_fields.h"
#include "base/settings/table.h"
#include "base/settings/value.h"

namespace manta::cluster {
namespace {

using nlohmann::json;

std::string option(const settings::Setting& row, const json& value) {
  const std::string name = settings::option_name(row.key);
  const bool dotted = row.key.find('.') != std::string::npos;
  if (!value.is_boolean() || dotted)
    return fmt::format("{}={}", name, value.is_array() ? value.dump() : settings::show(value));
  return value.get<bool>() ? name : "--no-" + name.substr(2);
}

}  // namespace

std::vector<std::string> command_line(const Settings& settings) {
  std::vector<std::string> out;
  if (!settings.model.empty()) out.push_back(settings.model);
  settings::for_each_field(settings, [&](const char* key, const auto& field) {
    const settings::Setting& row = *settings::find(key);
    const json value = settings::field_to_json(field);
    const bool said = row.key == "model" || row.secret || value.is_null() || value == json::parse(row.default_json);
    if (!said) out.push_back(option(row, value));
  });
  return out;
}

}  // namespace manta::cluster
