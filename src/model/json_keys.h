// Reads the keys of one JSON object with their bounds. The first fault sticks and every later read returns its
// default, so that a list of reads needs one check at the end. Only for .cc files: it brings in nlohmann.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace manta::model {

// Text to an object, without duplicate keys and at most `max_bytes` long. `what` opens every message: "config.json".
Result<nlohmann::json> parse_json_object(std::string_view text, const std::string& what, size_t max_bytes);

class JsonKeys {
 public:
  // `object` must stay alive.
  JsonKeys(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {}

  // No default: the key must be there. null counts as absent.
  int integer(const char* key, int64_t low, int64_t high, std::optional<int> otherwise = {});
  double number(const char* key, double low, double high, std::optional<double> otherwise = {});
  bool boolean(const char* key, bool otherwise);
  std::string text(const char* key, std::initializer_list<const char*> choices, const char* otherwise);
  // An integer, a list of them, or absent (empty).
  std::vector<int> integers(const char* key, int64_t low, int64_t high);
  // Null when absent; a fault when it is no object.
  const nlohmann::json* object(const char* key);
  bool has(const char* key);  // present and not null; counts as read

  bool was_read(std::string_view key) const { return read_.find(key) != read_.end(); }

  void fail(ErrorCode code, std::string message);  // message without the file's name
  // Keys that were neither read nor listed: numbers, true/false, lists and objects are a fault, texts a note.
  void refuse_unknown(std::initializer_list<const char*> harmless, std::vector<std::string>* notes);
  Status status() const;

 private:
  const nlohmann::json* find(const char* key);

  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string, std::less<>> read_;
  std::optional<Error> fault_;
};

}  // namespace manta::model
