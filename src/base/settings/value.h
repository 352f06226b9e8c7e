// From what a user typed to the JSON value a row wants, with its bounds checked.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/settings/table.h"

namespace manta::settings {

// value: anything from YAML or JSON, or a JSON string holding the text of an argument or variable. "1000", 1000 and
// 1e3 are one integer, "False" and false one boolean, "a" and ["a"] one list. The error says what is
// wanted ("must be at least 1"); the caller puts key and value before it.
Result<nlohmann::json> coerce(const Setting& row, const nlohmann::json& value);

// Why the row does not take this value (already coerced); "" when it does.
std::string refusal(const Setting& row, const nlohmann::json& value);

// The value as a user would type it: text without quotes, lists with commas.
std::string show(const nlohmann::json& value);

// JSON text; discarded when it is none, or nested deeper than kMaxJsonDepth (much deeper would exhaust the stack).
constexpr int kMaxJsonDepth = 64;
nlohmann::json parse_json(std::string_view text);

// The text of a dotted option whose key is not in the table: JSON when it is JSON (1, true, {"a":1}), else a string.
nlohmann::json parse_loose(std::string_view text);

}  // namespace manta::settings
