// The attributes a row of settings.def may carry.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/settings/table.h"

namespace manta::settings {

using Attribute = std::function<void(Setting&)>;

std::vector<std::string> split_words(std::string_view words);  // at spaces

// clang-format off
inline Attribute unit(const char* name) { return [=](Setting& s) { s.unit = name; }; }
// Other spellings, with dashes, separated by spaces.
inline Attribute alias(const char* names) { return [=](Setting& s) { s.aliases = split_words(names); }; }
// Environment names; of several that are set, the last one holds.
inline Attribute env(const char* names) { return [=](Setting& s) { s.variables = split_words(names); }; }
inline Attribute choices(const char* values) { return [=](Setting& s) { s.choices = split_words(values); }; }
inline Attribute at_least(double low) { return [=](Setting& s) { s.min = low; }; }
inline Attribute between(double low, double high) { return [=](Setting& s) { s.min = low; s.max = high; }; }
inline void sizes(Setting& s) { s.takes_suffix = true; }  // 16k, 4M, …
inline void secret(Setting& s) { s.secret = true; }       // never printed
inline void same_on_all_nodes(Setting& s) { s.same_on_all_nodes = true; }
// Without that other setting this one has no effect; giving it alone makes a note.
inline Attribute only_with(const char* key) { return [=](Setting& s) { s.only_with = key; }; }
// clang-format on

inline Attribute answer(Answer answer, std::string line) {
  return [=](Setting& s) {
    s.answer = answer;
    s.line = line;
  };
}
// Refused when the value is not the default.
inline Attribute refused(const char* reason) {
  return answer(Answer::kRefused, reason);
}
// The same for what a later version does: deleting this attribute switches the option on.
inline Attribute not_yet(const char* what) {
  return answer(Answer::kRefused, std::string("not in this version yet: ") + what);
}
// Accepted from every source; the line says what it does here instead.
inline Attribute noted(const char* line) {
  return answer(Answer::kNoted, line);
}
// Refuses one value of an option that works.
inline Attribute refuse_value(const char* value, const char* reason) {
  return [=](Setting& s) { s.refused_values.emplace_back(value, reason); };
}

}  // namespace manta::settings
