// A field of struct Settings as JSON and back. Start-up code only: includes the whole JSON library.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/settings.h"

namespace manta::settings {

inline nlohmann::json field_to_json(const JsonText& value) {
  return nlohmann::json::parse(value.text);
}
template <typename T>
nlohmann::json field_to_json(const T& value) {
  return value;
}
template <typename T>
nlohmann::json field_to_json(const std::optional<T>& value) {
  return value ? field_to_json(*value) : nlohmann::json();
}

// value has the field's JSON type already (see coerce in value.h); throws nlohmann's exception when it has not.
inline void field_from_json(const nlohmann::json& value, JsonText& field) {
  field.text = value.dump();
}
template <typename T>
void field_from_json(const nlohmann::json& value, T& field) {
  field = value.get<T>();
}
template <typename T>
void field_from_json(const nlohmann::json& value, std::optional<T>& field) {
  if (value.is_null())
    field.reset();
  else
    field_from_json(value, field.emplace());
}

}  // namespace manta::settings
