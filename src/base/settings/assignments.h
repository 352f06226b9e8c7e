// Collects what environment, file and command line say about each row, later ones winning, then turns the outcome into
// Settings with every problem found on the way.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/settings.h"
#include "base/settings/table.h"

namespace manta::settings {

// Lines with subjects; subjects with the same line are printed together: "a, b: line".
class Lines {
 public:
  void add(const std::string& subject, const std::string& line);
  bool empty() const { return lines_.empty(); }
  std::vector<std::string> text() const;
  std::string joined() const;  // one line each

 private:
  std::vector<std::pair<std::string, std::vector<std::string>>> lines_;  // line, subjects
};

class Assignments {
 public:
  // path: canonical ("eplb_config.window_size"). Values of objects are taken apart, old names become ours, a JSON
  // string is converted when the row wants something else. null means "not given".
  void set(const std::string& path, const nlohmann::json& value, const SettingOrigin& origin);
  // Adds elements to a list row, or to a list inside a JSON row.
  void append(const std::string& path, const std::vector<std::string>& elements, const SettingOrigin& origin);
  void set_environment(const EnvMap& env);

  void problem(const std::string& subject, const std::string& line) {
    only_refused_ = false;
    problems_.add(subject, line);
  }
  // A problem of ours rather than of the input: known, and not done here.
  void refuse(const std::string& subject, const std::string& reason) { problems_.add(subject, reason); }
  void note(const std::string& subject, const std::string& line) { notes_.add(subject, line); }

  // Call once, last. Checks kinds, bounds, choices and answers of all rows, then validate().
  Result<ParsedSettings> resolve();

 private:
  struct Given {
    nlohmann::json value;
    SettingOrigin origin;
  };
  void set_renamed(const Renamed& row, const nlohmann::json& value, const SettingOrigin& origin);
  void set_object(const std::string& path, const nlohmann::json& value, const SettingOrigin& origin);
  bool set_inside_json(const std::string& path, const nlohmann::json& value, const SettingOrigin& origin, bool append);
  void set_row(const Setting& row, nlohmann::json value, const SettingOrigin& origin);
  void set_variables_without_option(const EnvMap& env);
  void unknown(const std::string& path, const SettingOrigin& origin);
  void resolve_row(const Setting& row, const Given& given, nlohmann::json& values);
  void derive(Settings& settings);
  void note_without_effect(const nlohmann::json& values);

  std::map<std::string, Given> given_;  // by key
  Lines problems_, notes_;
  bool only_refused_ = true;  // decides between kUnimplemented and kInvalidArgument
};

// What no single row can see: "subject: line" problems of settings that need or exclude each other.
void check_together(const Settings& s, Lines& problems);

}  // namespace manta::settings
