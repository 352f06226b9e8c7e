// Reading the fields of a JSON request: typed, bounded, with the field's name in every complaint. null counts as not
// given, an unknown field is ignored.
#pragma once

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/openai/api_error.h"
#include "base/ids.h"

namespace manta::api {

using Json = simdjson::dom::element;

// One per event loop: keeps its memory from request to request.
class JsonParser {
 public:
  // Objects and arrays may nest so deep; what DeepSeek's templates and JSON schemas need stays far below.
  static constexpr size_t kMaxDepth = 128;

  // root lives until the next parse, and so does what is read from it. text may be modified (padding is appended).
  Problem parse(std::string& text, Json& root);

 private:
  static constexpr size_t kKeptBytes = 1 << 20;  // a larger document's memory is given back
  std::optional<simdjson::dom::parser> parser_;
};

// What to call a JSON value in a message: "a string", "null", …
std::string_view kind_of(Json value);

struct IntRange {
  int64_t low, high;
};
struct FloatRange {
  double low, high;
};

Problem read_bool(Json value, std::string_view name, bool& out);
// 16.0 is an integer, 16.5 and "16" are not.
Problem read_int(Json value, std::string_view name, IntRange range, int64_t& out);
Problem read_float(Json value, std::string_view name, FloatRange range, double& out);
Problem read_string(Json value, std::string_view name, std::string& out);
Problem read_token_ids(Json value, std::string_view name, std::vector<TokenId>& out);
Problem read_strings(Json value, std::string_view name, std::vector<std::string>& out);
Problem read_object(Json value, std::string_view name, simdjson::dom::object& out);
// The value as JSON text without spaces.
std::string json_text(Json value);

// A field of a request and how it is read into R.
template <typename R>
struct Field {
  std::string_view name;
  Problem (*read)(Json value, R& request);
};

template <typename R>
const Field<R>* find_field(std::span<const Field<R>> fields, std::string_view name) {
  const auto found = std::find_if(fields.begin(), fields.end(), [&](const auto& field) { return field.name == name; });
  return found == fields.end() ? nullptr : &*found;
}

}  // namespace manta::api
