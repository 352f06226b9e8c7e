#include "text/python_json.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>

#include "text/utf8.h"

namespace manta::text {

namespace {

// The character's bytes are well-formed.
uint32_t code_point_of(std::string_view character) {
  const auto lead = static_cast<uint8_t>(character[0]);
  uint32_t code_point = lead >= 0xF0 ? lead & 0x07u : (lead >= 0xE0 ? lead & 0x0Fu : lead & 0x1Fu);
  for (const char c : character.substr(1)) code_point = code_point << 6 | (static_cast<uint8_t>(c) & 0x3Fu);
  return code_point;
}

void append_escaped(std::string_view character, std::string& out) {
  uint32_t code_point = code_point_of(character);
  if (code_point >= 0x10000) {
    code_point -= 0x10000;
    out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (code_point >> 10), 0xDC00 + (code_point & 0x3FF));
  } else {
    out += fmt::format("\\u{:04x}", code_point);
  }
}

size_t character_bytes(char lead_char) {
  const auto lead = static_cast<uint8_t>(lead_char);
  return lead >= 0xF0 ? 4 : (lead >= 0xE0 ? 3 : (lead >= 0xC0 ? 2 : 1));
}

}  // namespace

std::string python_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string_view shortest(buffer, static_cast<size_t>(end - buffer));  // "-1.25e-07": the shortest that reads back
  const std::string sign = shortest.front() == '-' ? "-" : "";
  shortest.remove_prefix(sign.size());
  const size_t e = shortest.find('e');
  std::string digits(shortest.substr(0, 1));
  if (e > 1) digits += shortest.substr(2, e - 2);
  const int exponent = std::stoi(std::string(shortest.substr(e + 1)));
  const auto num_digits = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = num_digits > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02}", sign, digits[0], fraction, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (num_digits <= exponent + 1)
    return sign + digits + std::string(static_cast<size_t>(exponent + 1 - num_digits), '0') + ".0";
  return sign + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

void append_python_string(std::string_view text, bool ensure_ascii, std::string& out) {
  out += '"';
  for (size_t pos = 0; pos < text.size(); ++pos) {
    const char c = text[pos];
    const auto byte = static_cast<uint8_t>(c);
    switch (c) {
      case '"': out += "\\\""; continue;
      case '\\': out += "\\\\"; continue;
      case '\b': out += "\\b"; continue;
      case '\f': out += "\\f"; continue;
      case '\n': out += "\\n"; continue;
      case '\r': out += "\\r"; continue;
      case '\t': out += "\\t"; continue;
      default: break;
    }
    if (byte < 0x20) {
      out += fmt::format("\\u{:04x}", byte);
    } else if (byte < 0x80 || !ensure_ascii) {
      out += c;
    } else if (const auto character = text.substr(pos, character_bytes(c));
               well_formed_prefix(character) == character.size()) {
      append_escaped(character, out);
      pos += character.size() - 1;
    } else {
      out += "\\ufffd";
    }
  }
  out += '"';
}

}  // namespace manta::text
