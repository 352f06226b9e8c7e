#include "base/settings/table.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <unordered_map>

#include "base/settings/attributes.h"
#include "base/settings/fields.h"
#include "base/settings/json_fields.h"

namespace manta::settings {

std::vector<std::string> split_words(std::string_view words) {
  std::istringstream in{std::string(words)};
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

namespace {

// clang-format off
Kind kind_of(const bool&) { return Kind::kFlag; }
Kind kind_of(const int64_t&) { return Kind::kInteger; }
Kind kind_of(const double&) { return Kind::kReal; }
Kind kind_of(const std::string&) { return Kind::kText; }
Kind kind_of(const std::vector<int64_t>&) { return Kind::kIntegerList; }
Kind kind_of(const std::vector<std::string>&) { return Kind::kTextList; }
Kind kind_of(const JsonText&) { return Kind::kJson; }
template <typename T> Kind kind_of(const std::optional<T>&) { return kind_of(T{}); }
// clang-format on

class TableMaker {
 public:
  void group(const char* title) { group_ = title; }

  void row(const char* key, Kind kind, const char* help, std::initializer_list<Attribute> attributes) {
    Setting& s = add(key, kind);
    s.help = help;
    for (const Attribute& apply : attributes) apply(s);
  }
  void fixed(const char* keys, const char* values, const char* reason) {
    answer_rows(keys, Kind::kText, Answer::kRefused, reason);
    Setting& s = rows.back();
    s.fixed = split_words(values);
    if (s.fixed.empty()) s.fixed = {""};
  }
  void answer_rows(const char* keys, Kind kind, Answer answer, const char* line) {
    for (const std::string& word : split_words(keys)) {
      if (word[0] == '-') {
        rows.back().aliases.push_back(word);
        continue;
      }
      Setting& s = add(word, kind);
      s.answer = answer;
      s.line = line;
      if (kind == Kind::kFlag) s.default_json = "false";
    }
  }
  // The defaults stand in the struct itself, so that row and field cannot disagree.
  void take_defaults() {
    std::unordered_map<std::string, size_t> at;
    for (size_t i = 0; i < rows.size(); ++i) at[rows[i].key] = i;
    const Settings defaults;
    for_each_field(defaults, [&](const char* key, const auto& field) {
      Setting& s = rows[at.at(key)];
      s.has_field = true;
      s.kind = kind_of(field);
      s.default_json = field_to_json(field).dump();
    });
  }

  std::vector<Setting> rows;

 private:
  Setting& add(std::string key, Kind kind) {
    Setting& s = rows.emplace_back();
    s.key = std::move(key);
    s.group = group_;
    s.kind = kind;
    return s;
  }
  std::string group_;
};

std::vector<Setting> make_table() {
  TableMaker t;
  [[maybe_unused]] constexpr Kind flag = Kind::kFlag, value = Kind::kText, list = Kind::kTextList, json = Kind::kJson;
#define GROUP(title) t.group(title);
#define SETTING(type, name, default_value, help, ...) t.row(#name, Kind::kText, help, {__VA_ARGS__});
#define FIELD(object, type, name, default_value, help, ...) t.row(#object "." #name, Kind::kText, help, {__VA_ARGS__});
#define OBJECT(Type, path, name, help, ...) t.row(#path, Kind::kObject, help, {__VA_ARGS__});
#include "base/settings/settings.def"
#define GROUP(title) t.group(title);
#define FIXED(keys, values, reason) t.fixed(keys, values, reason);
#define REFUSED(kind, keys, reason) t.answer_rows(keys, kind, Answer::kRefused, reason);
#define NOTED(kind, keys, line) t.answer_rows(keys, kind, Answer::kNoted, line);
#include "base/settings/no_field.def"
  t.take_defaults();
  return std::move(t.rows);
}

std::vector<Renamed> make_renamed() {
  return {
#define RENAMED(from, to) Renamed{from, split_words(to), false},
#define INVERTED(from, to) Renamed{from, split_words(to), true},
#include "base/settings/renamed.def"
  };
}

std::vector<Variable> make_variables() {
  std::vector<Variable> out;
  auto add = [&](const char* names, const char* line, Answer answer) {
    for (const std::string& name : split_words(names)) out.push_back({name, line, answer});
  };
#define ENV_NOTED(names, line) add(names, line, Answer::kNoted);
#define ENV_REFUSED(names, reason) add(names, reason, Answer::kRefused);
#include "base/settings/environment.def"
  return out;
}

// Every name a row answers to -> its canonical key: keys and long aliases in canonical form, short ones as typed.
const std::unordered_map<std::string, std::string>& option_index() {
  static const auto index = [] {
    std::unordered_map<std::string, std::string> out;
    for (const Setting& s : table()) {
      out.emplace(s.key, s.key);
      for (const std::string& alias : s.aliases) out.emplace(alias.starts_with("--") ? canonical(alias) : alias, s.key);
    }
    for (const Renamed& r : renamed()) out.emplace(r.from, r.from);
    return out;
  }();
  return index;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::span<const Setting> table() {
  static const std::vector<Setting> rows = make_table();
  return rows;
}

std::span<const Renamed> renamed() {
  static const std::vector<Renamed> rows = make_renamed();
  return rows;
}

std::span<const Variable> variables() {
  static const std::vector<Variable> rows = make_variables();
  return rows;
}

const Setting* find(std::string_view key) {
  static const auto index = [] {
    std::unordered_map<std::string_view, const Setting*> out;
    for (const Setting& s : table()) out.emplace(s.key, &s);
    return out;
  }();
  const auto it = index.find(key);
  return it == index.end() ? nullptr : it->second;
}

const Renamed* find_renamed(std::string_view key) {
  for (const Renamed& r : renamed())
    if (r.from == key) return &r;
  return nullptr;
}

std::optional<std::string> find_option(std::string_view option) {
  const auto it = option_index().find(std::string(option));
  if (it == option_index().end()) return std::nullopt;
  return it->second;
}

std::string canonical(std::string_view name) {
  while (name.starts_with('-')) name.remove_prefix(1);
  std::string out(name);
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

std::string canonical_path(std::string_view dotted) {
  const size_t dot = dotted.find('.');
  const std::string first = canonical(dotted.substr(0, dot));
  std::string base = find_option(first).value_or(first);
  return dot == std::string_view::npos ? base : base + canonical_rest(base, dotted.substr(dot));
}

std::string canonical_rest(std::string_view base, std::string_view rest) {
  std::string out;
  while (!rest.empty()) {
    const size_t next = rest.find('.', 1);
    std::string part(rest.substr(0, next));
    const Setting* row = find(std::string(base) + out);
    if (row != nullptr && row->kind == Kind::kObject) part = "." + canonical(part.substr(1));
    out += part;
    rest = next == std::string_view::npos ? "" : rest.substr(next);
  }
  return out;
}

std::string option_name(std::string_view key) {
  std::string out = "--" + std::string(key);
  const size_t dot = out.find('.');
  std::replace(out.begin(), dot == std::string::npos ? out.end() : out.begin() + dot, '_', '-');
  return out;
}

std::string nearest_name(std::string_view name, std::span<const std::string> known) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t longer = std::max(name.size(), candidate.size()), shorter = std::min(name.size(), candidate.size());
    if (longer - shorter >= best_distance) continue;
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace manta::settings
