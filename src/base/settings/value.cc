#include "base/settings/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace manta::settings {

using nlohmann::json;

namespace {

Error bad(std::string what) {
  return error(ErrorCode::kInvalidArgument, std::move(what));
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  return text;
}

Result<json> to_flag(const json& value) {
  if (value.is_boolean()) return json(value);
  const std::string text = value.is_string() ? lower(trim(value.get_ref<const std::string&>())) : value.dump();
  for (const char* yes : {"true", "1", "yes", "on"})
    if (text == yes) return json(true);
  for (const char* no : {"false", "0", "no", "off"})
    if (text == no) return json(false);
  return bad("must be true or false");
}

std::optional<double> parse_real(std::string_view text) {
  double out = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (code != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return out;
}

// 1 for no suffix; 0 for one we do not know. k m g t are decimal, K M G T binary, as vLLM has them.
int64_t suffix_factor(char c) {
  switch (c) {
    case 'k': return 1'000;
    case 'm': return 1'000'000;
    case 'g': return 1'000'000'000;
    case 't': return 1'000'000'000'000;
    case 'K': return int64_t{1} << 10;
    case 'M': return int64_t{1} << 20;
    case 'G': return int64_t{1} << 30;
    case 'T': return int64_t{1} << 40;
    default: return (c >= '0' && c <= '9') || c == '.' ? 1 : 0;
  }
}

Result<json> integer_from_real(double real) {
  if (!std::isfinite(real) || real != std::floor(real)) return bad("must be an integer");
  if (std::abs(real) >= 9.2e18) return bad("does not fit in 64 bits");
  return json(static_cast<int64_t>(real));
}

Result<json> integer_from_text(const Setting& row, std::string_view text) {
  text = trim(text);
  if (text.starts_with('+')) text.remove_prefix(1);
  int64_t factor = 1;
  if (row.takes_suffix && !text.empty()) {
    factor = suffix_factor(text.back());
    if (factor == 0) return bad("must be an integer, or one with k m g t (decimal) or K M G T (binary)");
    if (factor != 1) text.remove_suffix(1);
  }
  int64_t whole = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), whole);
  if (code == std::errc::result_out_of_range) return bad("does not fit in 64 bits");
  if (code == std::errc() && end == text.data() + text.size()) {
    if (__builtin_mul_overflow(whole, factor, &whole)) return bad("does not fit in 64 bits");
    return json(whole);
  }
  const auto real = parse_real(text);
  if (!real) return bad("must be an integer");
  return integer_from_real(*real * static_cast<double>(factor));
}

Result<json> to_integer(const Setting& row, const json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()})
    return bad("does not fit in 64 bits");
  if (value.is_number_integer()) return json(value);
  if (value.is_number_float()) return integer_from_real(value.get<double>());
  if (value.is_string()) return integer_from_text(row, value.get_ref<const std::string&>());
  return bad("must be an integer");
}

Result<json> to_real(const json& value) {
  if (value.is_number()) return json(value.get<double>());
  if (value.is_string())
    if (const auto real = parse_real(trim(value.get_ref<const std::string&>())); real && std::isfinite(*real))
      return json(*real);
  return bad("must be a number");
}

// Settings travel as JSON, which is UTF-8; the library throws on anything else.
bool is_utf8(const json& value) {
  try {
    (void)value.dump();
    return true;
  } catch (const json::exception&) {
    return false;
  }
}

Result<json> to_text(const Setting& row, const json& value) {
  if (value.is_object() || value.is_array()) return bad("must be a text");
  const std::string text = show(value);
  if (row.choices.empty() || value == json::parse(row.default_json)) return json(text);
  for (const std::string& choice : row.choices)
    if (lower(choice) == lower(text)) return json(choice);
  for (const auto& [refused, why] : row.refused_values)
    if (lower(refused) == lower(text)) return json(refused);
  return bad(fmt::format("must be one of {}", fmt::join(row.choices, ", ")));
}

Result<json> to_json_object(const json& value) {
  if (value.is_object()) return json(value);
  if (value.is_string()) {
    json parsed = parse_json(value.get_ref<const std::string&>());
    if (parsed.is_object()) return parsed;
  }
  return bad("must be a JSON object, as in '{\"key\": 1}'");
}

std::string show_bound(const Setting& row, double bound) {
  return row.kind == Kind::kReal ? fmt::format("{}", bound) : fmt::format("{}", static_cast<int64_t>(bound));
}

Status check_bounds(const Setting& row, const json& value) {
  if (value.is_array()) {
    for (const json& element : value) MANTA_TRY(check_bounds(row, element));
    return {};
  }
  if (!value.is_number()) return {};
  const double number = value.get<double>();
  const bool low = row.min && number < *row.min, high = row.max && number > *row.max;
  if (!low && !high) return {};
  if (row.min && row.max)
    return bad(fmt::format("must be between {} and {}", show_bound(row, *row.min), show_bound(row, *row.max)));
  if (low) return bad(fmt::format("must be at least {}", show_bound(row, *row.min)));
  return bad(fmt::format("must be at most {}", show_bound(row, *row.max)));
}

// A list may be given as a list, as one element, or as the JSON text of a list.
Result<json> to_list(const Setting& row, const json& value) {
  Setting element = row;
  element.kind = row.kind == Kind::kIntegerList ? Kind::kInteger : Kind::kText;
  element.default_json = "null";
  json elements = value;
  if (value.is_string() && value.get_ref<const std::string&>().starts_with('['))
    if (json parsed = parse_json(value.get_ref<const std::string&>()); parsed.is_array()) elements = parsed;
  if (!elements.is_array()) elements = json::array({elements});
  json out = json::array();
  for (const json& e : elements) {
    if (e.is_array()) return bad("must be a plain list");
    auto one = coerce(element, e);
    if (!one.ok()) return bad(fmt::format("element {} {}", show(e), one.error().message));
    out.push_back(std::move(one).value());
  }
  return out;
}

Result<json> convert(const Setting& row, const json& value) {
  switch (row.kind) {
    case Kind::kFlag: return to_flag(value);
    case Kind::kInteger: return to_integer(row, value);
    case Kind::kReal: return to_real(value);
    case Kind::kText: return row.has_field ? to_text(row, value) : json(value);
    case Kind::kIntegerList:
    case Kind::kTextList: return to_list(row, value);
    case Kind::kJson: return row.has_field ? to_json_object(value) : json(value);
    case Kind::kObject: break;
  }
  return error(ErrorCode::kInternal, "objects are taken apart before their values are looked at");
}

}  // namespace

Result<json> coerce(const Setting& row, const json& value) {
  for (const auto& [refused, why] : row.refused_values)
    if (show(value) == refused) return json(refused);
  if (!is_utf8(value)) return bad("is not UTF-8");
  MANTA_ASSIGN(json out, convert(row, value));
  MANTA_TRY(check_bounds(row, out));
  return out;
}

std::string refusal(const Setting& row, const json& value) {
  for (const auto& [refused, why] : row.refused_values)
    if (value == json(refused)) return why;
  if (row.answer != Answer::kRefused) return "";
  if (value == json::parse(row.default_json)) return "";
  const std::string text = lower(show(value));
  for (const std::string& fine : row.fixed)
    if (text == lower(fine)) return "";
  return row.line;
}

std::string show(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump(-1, ' ', false, json::error_handler_t::replace);
  std::vector<std::string> elements;
  for (const json& e : value) elements.push_back(show(e));
  return fmt::format("{}", fmt::join(elements, ","));
}

json parse_json(std::string_view text) {
  bool too_deep = false;
  const auto watch = [&](int depth, json::parse_event_t, json&) {
    too_deep |= depth > kMaxJsonDepth;
    return !too_deep;
  };
  json parsed = json::parse(text, watch, false);
  return too_deep ? json(json::value_t::discarded) : parsed;
}

json parse_loose(std::string_view text) {
  json parsed = parse_json(text);
  return parsed.is_discarded() ? json(std::string(text)) : parsed;
}

}  // namespace manta::settings
