#include "model/json_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace manta::model {

using nlohmann::json;

namespace {

constexpr int kMaxDepth = 16;

std::string brief(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// Sees the text while nlohmann parses it: it alone would keep the last of two equal keys, and nest without end.
class ParseGuard {
 public:
  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxDepth) fault_ = fmt::format("is nested more than {} deep", kMaxDepth);
    if (event == json::parse_event_t::object_start) keys_.resize(std::max<size_t>(keys_.size(), depth + 1));
    if (event == json::parse_event_t::object_start) keys_[depth].clear();
    if (event == json::parse_event_t::key && !keys_[depth - 1].insert(parsed.get<std::string>()).second) {
      fault_ = fmt::format("has the key {} twice", brief(parsed));
    }
    return fault_.empty();
  }
  const std::string& fault() const { return fault_; }

 private:
  std::vector<std::set<std::string>> keys_;
  std::string fault_;
};

}  // namespace

Result<json> parse_json_object(std::string_view text, const std::string& what, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: {} bytes, at most {}", what, text.size(), max_bytes));
  }
  ParseGuard guard;
  try {
    json parsed = json::parse(text, std::ref(guard));
    if (!guard.fault().empty()) return error(ErrorCode::kInvalidArgument, what + " " + guard.fault());
    if (!parsed.is_object()) return error(ErrorCode::kInvalidArgument, what + " is not a JSON object");
    return parsed;
  } catch (const json::exception& e) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{} is not JSON: {}", what, e.what()));
  }
}

const json* JsonKeys::find(const char* key) {
  read_.insert(key);
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool JsonKeys::has(const char* key) {
  return find(key) != nullptr;
}

void JsonKeys::fail(ErrorCode code, std::string message) {
  if (!fault_) fault_ = error(code, where_ + ": " + std::move(message));
}

int JsonKeys::integer(const char* key, int64_t low, int64_t high, std::optional<int> otherwise) {
  const json* value = find(key);
  const int safe = otherwise.value_or(static_cast<int>(low));
  if (!value) {
    if (!otherwise) fail(ErrorCode::kInvalidArgument, fmt::format("{} is missing", key));
    return safe;
  }
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high) {
    fail(ErrorCode::kInvalidArgument,
         fmt::format("{} {}: must be an integer in [{}, {}]", key, brief(*value), low, high));
    return safe;
  }
  return static_cast<int>(value->get<int64_t>());
}

double JsonKeys::number(const char* key, double low, double high, std::optional<double> otherwise) {
  const json* value = find(key);
  if (!value) {
    if (!otherwise) fail(ErrorCode::kInvalidArgument, fmt::format("{} is missing", key));
    return otherwise.value_or(low);
  }
  const double x = value->is_number() ? value->get<double>() : NAN;
  if (!(x >= low && x <= high)) {
    fail(ErrorCode::kInvalidArgument,
         fmt::format("{} {}: must be a number in [{}, {}]", key, brief(*value), low, high));
    return otherwise.value_or(low);
  }
  return x;
}

bool JsonKeys::boolean(const char* key, bool otherwise) {
  const json* value = find(key);
  if (!value) return otherwise;
  if (!value->is_boolean()) {
    fail(ErrorCode::kInvalidArgument, fmt::format("{} {}: must be true or false", key, brief(*value)));
    return otherwise;
  }
  return value->get<bool>();
}

std::string JsonKeys::text(const char* key, std::initializer_list<const char*> choices, const char* otherwise) {
  const json* value = find(key);
  if (!value) return otherwise;
  const std::string got = value->is_string() ? value->get<std::string>() : "";
  if (std::any_of(choices.begin(), choices.end(), [&](const char* choice) { return got == choice; })) return got;
  fail(ErrorCode::kUnimplemented,
       fmt::format("{} {}: manta runs {}", key, brief(*value), fmt::join(choices.begin(), choices.end(), " or ")));
  return otherwise;
}

std::vector<int> JsonKeys::integers(const char* key, int64_t low, int64_t high) {
  const json* value = find(key);
  if (!value) return {};
  const json list = value->is_array() ? *value : json::array({*value});
  std::vector<int> out;
  for (const json& item : list) {
    const bool fits = item.is_number_integer() && !(item.is_number_unsigned() && item.get<uint64_t>() > INT32_MAX);
    if (!fits || item.get<int64_t>() < low || item.get<int64_t>() > high) {
      fail(ErrorCode::kInvalidArgument,
           fmt::format("{} {}: must be an integer in [{}, {}] or a list of them", key, brief(*value), low, high));
      return {};
    }
    out.push_back(static_cast<int>(item.get<int64_t>()));
  }
  return out;
}

const json* JsonKeys::object(const char* key) {
  const json* value = find(key);
  if (value && !value->is_object()) {
    fail(ErrorCode::kInvalidArgument, fmt::format("{} {}: must be an object", key, brief(*value)));
    return nullptr;
  }
  return value;
}

void JsonKeys::refuse_unknown(std::initializer_list<const char*> harmless, std::vector<std::string>* notes) {
  for (const auto& item : object_.items()) {
    const std::string& key = item.key();
    const json& value = item.value();
    if (value.is_null() || read_.count(key) != 0) continue;
    if (std::any_of(harmless.begin(), harmless.end(), [&](const char* known) { return key == known; })) continue;
    if (value.is_string()) {
      notes->push_back(
          fmt::format("{}: the key {} ({}) is not known and was ignored", where_, brief(key), brief(value)));
      continue;
    }
    fail(ErrorCode::kUnimplemented,
         fmt::format("the key {} = {} is not known here and may change the model's arithmetic. If it does not, remove "
                     "it with --hf-overrides '{{{}: null}}'",
                     brief(key), brief(value), brief(key)));
  }
}

Status JsonKeys::status() const {
  return fault_ ? Status(*fault_) : Status();
}

}  // namespace manta::model
