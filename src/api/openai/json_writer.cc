#include "api/openai/json_writer.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <iterator>

namespace manta::api {
namespace {

constexpr std::array<bool, 256> must_escape() {
  std::array<bool, 256> table{};
  for (int c = 0; c < 0x20; ++c) table[static_cast<size_t>(c)] = true;
  table['"'] = table['\\'] = true;
  return table;
}
constexpr auto kMustEscape = must_escape();

void append_escape(std::string& out, char c) {
  switch (c) {
    case '"': out += "\\\""; return;
    case '\\': out += "\\\\"; return;
    case '\n': out += "\\n"; return;
    case '\r': out += "\\r"; return;
    case '\t': out += "\\t"; return;
    default: fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned char>(c));
  }
}

template <typename Float>
void append_float(std::string& out, Float value) {
  if (!std::isfinite(value)) value = value > 0 ? Float(9999) : Float(-9999);
  fmt::format_to(std::back_inserter(out), "{}", value);
}

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  size_t done = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!kMustEscape[static_cast<unsigned char>(text[i])]) continue;
    out.append(text, done, i - done);
    append_escape(out, text[i]);
    done = i + 1;
  }
  out.append(text, done);
  out += '"';
}

void append_json_number(std::string& out, float value) {
  append_float(out, value);
}
void append_json_number(std::string& out, double value) {
  append_float(out, value);
}
void append_json_number(std::string& out, int64_t value) {
  const fmt::format_int digits(value);
  out.append(digits.data(), digits.size());
}

}  // namespace manta::api
