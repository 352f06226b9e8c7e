#include "api/openai/field.h"

#include <cmath>
#include <limits>

namespace manta::api {

Problem JsonParser::parse(std::string& text, Json& root) {
  if (!parser_) {
    parser_.emplace();
    // Depth 0 is the document itself in simdjson's count.
    if (parser_->allocate(kKeptBytes, kMaxDepth) != simdjson::SUCCESS) return internal_error("out of memory");
  }
  if (text.size() > kKeptBytes) {
    parser_.emplace();
    if (parser_->allocate(text.size(), kMaxDepth) != simdjson::SUCCESS) return internal_error("out of memory");
  }
  const size_t num_bytes = text.size();
  text.reserve(num_bytes + simdjson::SIMDJSON_PADDING);  // then the parser need not copy
  const auto result = parser_->parse(text.data(), num_bytes, /*realloc_if_needed=*/false);
  if (result.error() == simdjson::DEPTH_ERROR) {
    return bad_shape("body", fmt::format("JSON nests deeper than {} levels", kMaxDepth));
  }
  if (result.error())
    return bad_shape("body", fmt::format("JSON decode error: {}", simdjson::error_message(result.error())));
  root = result.value_unsafe();
  return {};
}

std::string_view kind_of(Json value) {
  using simdjson::dom::element_type;
  switch (value.type()) {
    case element_type::ARRAY: return "an array";
    case element_type::OBJECT: return "an object";
    case element_type::INT64:
    case element_type::UINT64: return "an integer";
    case element_type::DOUBLE: return "a number";
    case element_type::STRING: return "a string";
    case element_type::BOOL: return "a boolean";
    case element_type::NULL_VALUE: return "null";
  }
  return "something else";
}

namespace {

Problem wrong_kind(std::string_view name, std::string_view wanted, Json value) {
  return bad_shape(name, fmt::format("{}: input should be {}, got {}", name, wanted, kind_of(value)));
}

// Exactly an int64, also when written as 16.0.
std::optional<int64_t> as_int(Json value) {
  int64_t integer = 0;
  if (value.get(integer) == simdjson::SUCCESS) return integer;
  double number = 0;
  if (!value.is_double() || value.get(number) != simdjson::SUCCESS) return {};
  constexpr double kTooLarge = 9223372036854775808.0;  // 2^63
  if (number != std::floor(number) || number >= kTooLarge || number < -kTooLarge) return {};
  return static_cast<int64_t>(number);
}

}  // namespace

Problem read_bool(Json value, std::string_view name, bool& out) {
  if (value.get(out) == simdjson::SUCCESS) return {};
  return wrong_kind(name, "a boolean", value);
}

Problem read_int(Json value, std::string_view name, IntRange range, int64_t& out) {
  const auto integer = as_int(value);
  if (!integer) return wrong_kind(name, "an integer", value);
  if (*integer < range.low || *integer > range.high) {
    if (range.high == std::numeric_limits<int64_t>::max()) {
      return bad_value(name, fmt::format("{} must be at least {}, got {}.", name, range.low, *integer));
    }
    return bad_value(name, fmt::format("{} must be in [{}, {}], got {}.", name, range.low, range.high, *integer));
  }
  out = *integer;
  return {};
}

Problem read_float(Json value, std::string_view name, FloatRange range, double& out) {
  double number = 0;
  if (value.get(number) != simdjson::SUCCESS) return wrong_kind(name, "a number", value);
  if (!std::isfinite(number) || number < range.low || number > range.high) {
    return bad_value(name, fmt::format("{} must be in [{}, {}], got {}.", name, range.low, range.high, number));
  }
  out = number;
  return {};
}

Problem read_string(Json value, std::string_view name, std::string& out) {
  std::string_view text;
  if (value.get(text) != simdjson::SUCCESS) return wrong_kind(name, "a string", value);
  out = text;
  return {};
}

Problem read_token_ids(Json value, std::string_view name, std::vector<TokenId>& out) {
  simdjson::dom::array array;
  if (value.get(array) != simdjson::SUCCESS) return wrong_kind(name, "an array of token ids", value);
  out.clear();
  out.reserve(array.size());
  for (const Json item : array) {
    const auto id = as_int(item);
    if (!id) return wrong_kind(name, "an array of token ids", item);
    if (*id < 0 || *id > std::numeric_limits<TokenId>::max()) {
      return bad_value(name, fmt::format("{} holds token id {}, which is out of vocabulary.", name, *id));
    }
    out.push_back(static_cast<TokenId>(*id));
  }
  return {};
}

Problem read_strings(Json value, std::string_view name, std::vector<std::string>& out) {
  simdjson::dom::array array;
  if (value.get(array) != simdjson::SUCCESS) return wrong_kind(name, "an array of strings", value);
  out.clear();
  for (const Json item : array) {
    std::string_view text;
    if (item.get(text) != simdjson::SUCCESS) return wrong_kind(name, "an array of strings", item);
    out.emplace_back(text);
  }
  return {};
}

Problem read_object(Json value, std::string_view name, simdjson::dom::object& out) {
  if (value.get(out) == simdjson::SUCCESS) return {};
  return wrong_kind(name, "an object", value);
}

std::string json_text(Json value) {
  return simdjson::minify(value);
}

}  // namespace manta::api
