// The attributes a row of settings.def may carry. Plain data, so that 400 rows compile quickly.
#pragma once

#include <initializer_list>
#include <string>

#include "base/settings/table.h"

namespace manta::settings {

struct Attribute {
  void (*apply)(Setting& row, const Attribute& self);
  const char* text = "";
  const char* second = "";
  double low = 0, high = 0;
};

std::vector<std::string> split_words(std::string_view words);  // at spaces

// clang-format off
inline Attribute unit(const char* name) { return {[](Setting& s, const Attribute& a) { s.unit = a.text; }, name}; }
// Other spellings, with dashes, separated by spaces.
inline Attribute alias(const char* names) { return {[](Setting& s, const Attribute& a) { s.aliases = split_words(a.text); }, names}; }
// Environment names; of several that are set, the last one holds.
inline Attribute env(const char* names) { return {[](Setting& s, const Attribute& a) { s.variables = split_words(a.text); }, names}; }
inline Attribute choices(const char* values) { return {[](Setting& s, const Attribute& a) { s.choices = split_words(a.text); }, values}; }
inline Attribute at_least(double low) { return {[](Setting& s, const Attribute& a) { s.min = a.low; }, "", "", low}; }
inline Attribute between(double low, double high) { return {[](Setting& s, const Attribute& a) { s.min = a.low; s.max = a.high; }, "", "", low, high}; }
inline const Attribute sizes{[](Setting& s, const Attribute&) { s.takes_suffix = true; }};
inline const Attribute secret{[](Setting& s, const Attribute&) { s.secret = true; }};
inline const Attribute same_on_all_nodes{[](Setting& s, const Attribute&) { s.same_on_all_nodes = true; }};
// Refused when the value is not the default.
inline Attribute refused(const char* reason) { return {[](Setting& s, const Attribute& a) { s.answer = Answer::kRefused; s.line = a.text; }, reason}; }
// As refused, for what a later version does: deleting this attribute switches the option on.
inline Attribute not_yet(const char* what) { return {[](Setting& s, const Attribute& a) { s.answer = Answer::kRefused; s.line = std::string("not in this version yet: ") + a.text; }, what}; }
inline Attribute refuse_value(const char* value, const char* reason) { return {[](Setting& s, const Attribute& a) { s.refused_values.emplace_back(a.text, a.second); }, value, reason}; }
// Accepted from every source; the line says what it does here instead.
inline Attribute noted(const char* line) { return {[](Setting& s, const Attribute& a) { s.answer = Answer::kNoted; s.line = a.text; }, line}; }
// clang-format on

}  // namespace manta::settings
