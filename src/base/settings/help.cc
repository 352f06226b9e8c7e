// --help and docs/settings.md, both written from the table.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/settings.h"
#include "base/settings/table.h"
#include "base/settings/value.h"

namespace manta {

using settings::Answer;
using settings::Kind;
using settings::Setting;

namespace {

std::string argument_of(const Setting& row) {
  if (!row.choices.empty() && row.choices.size() <= 4) return fmt::format("{}", fmt::join(row.choices, "|"));
  switch (row.kind) {
    case Kind::kFlag: return "";
    case Kind::kInteger: return row.takes_suffix ? "SIZE" : "N";
    case Kind::kReal: return "X";
    case Kind::kText: return "TEXT";
    case Kind::kIntegerList: return "N...";
    case Kind::kTextList: return "TEXT...";
    case Kind::kJson:
    case Kind::kObject: return "JSON";
  }
  return "";
}

// "" for what has none: flags that are off, options that are not given.
std::string default_of(const Setting& row) {
  if (row.default_json == "null" || row.default_json == "[]" || row.default_json == "{}" || row.default_json == "\"\"")
    return "";
  if (row.kind == Kind::kFlag) return row.default_json == "true" ? "on" : "";
  const auto value = nlohmann::json::parse(row.default_json);
  return row.kind == Kind::kReal ? fmt::format("{}", value.get<double>()) : settings::show(value);
}

std::string bounds_of(const Setting& row) {
  const auto number = [&](double x) { return fmt::format("{}", x); };
  if (row.min && row.max) return number(*row.min) + " to " + number(*row.max);
  if (row.min) return "at least " + number(*row.min);
  return "";
}

std::string signature(const Setting& row) {
  std::string out;
  for (const std::string& alias : row.aliases)
    if (!alias.starts_with("--")) out += alias + ", ";
  const bool on = row.kind == Kind::kFlag && row.default_json == "true";
  out += on ? "--no-" + settings::option_name(row.key).substr(2) : settings::option_name(row.key);
  const std::string argument = argument_of(row);
  return argument.empty() ? out : out + " " + argument;
}

// Has an effect in this version: a part of something that is refused has none.
bool in_effect(const Setting& row) {
  if (row.answer != Answer::kWorks) return false;
  if (!row.only_with.empty() && !in_effect(*settings::find(row.only_with))) return false;
  const size_t dot = row.key.rfind('.');
  return dot == std::string::npos || in_effect(*settings::find(row.key.substr(0, dot)));
}

// The keys of an object that have an effect.
std::vector<std::string> keys_of(const Setting& object) {
  std::vector<std::string> out;
  const std::string prefix = object.key + ".";
  for (const Setting& row : settings::table())
    if (row.key.starts_with(prefix) && row.has_field && in_effect(row)) out.push_back(row.key.substr(prefix.size()));
  return out;
}

std::string explanation(const Setting& row) {
  std::string out = row.help.empty() ? row.line : row.help;
  if (const auto keys = keys_of(row); !keys.empty()) out += fmt::format(". Keys: {}", fmt::join(keys, ", "));
  if (row.kind == Kind::kFlag && row.default_json == "true") out = "not: " + out;
  const std::string value = default_of(row);
  if (row.kind != Kind::kFlag && !value.empty())
    out += fmt::format(" [{}{}{}]", value, row.unit.empty() ? "" : " ", row.unit);
  if (!row.help.empty() && row.answer == Answer::kRefused) out += fmt::format(" (refused: {})", row.line);
  if (!row.help.empty() && row.answer == Answer::kNoted) out += fmt::format(" (here: {})", row.line);
  return out;
}

// Greedy wrapping at word ends; the first line begins behind `column` characters that are there already.
std::string wrap(const std::string& text, size_t column, size_t width) {
  std::string out;
  size_t at = column;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (at > column && at + 1 + (end - begin) > width) {
      out += "\n" + std::string(column, ' ');
      at = column;
    } else if (at > column) {
      out += ' ';
      ++at;
    }
    out += text.substr(begin, end - begin);
    at += end - begin;
    begin = end + 1;
  }
  return out + "\n";
}

std::string help_row(const Setting& row) {
  constexpr size_t kColumn = 36, kWidth = 110;
  std::string left = "  " + signature(row);
  left += left.size() + 1 < kColumn ? std::string(kColumn - left.size(), ' ') : "\n" + std::string(kColumn, ' ');
  return left + wrap(explanation(row), kColumn, kWidth);
}

bool asked_for(const Setting& row, const std::string& about) {
  if (about.empty()) {
    if (row.kind == Kind::kObject) return !keys_of(row).empty();
    return row.has_field && in_effect(row) && row.key.find('.') == std::string::npos;
  }
  if (about == "all") return true;
  std::string group = row.group;
  std::transform(group.begin(), group.end(), group.begin(), [](unsigned char c) { return std::tolower(c); });
  std::string word = settings::canonical(about);
  std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
  std::replace(group.begin(), group.end(), ' ', '_');
  return row.key.find(word) != std::string::npos || group.find(word) != std::string::npos;
}

std::vector<std::string> groups() {
  std::vector<std::string> out;
  for (const Setting& row : settings::table())
    if (std::find(out.begin(), out.end(), row.group) == out.end()) out.push_back(row.group);
  return out;
}

}  // namespace

std::string settings_help(const std::string& about) {
  std::string out = "usage: manta serve MODEL [options]\n";
  bool any = false;
  for (const std::string& group : groups()) {
    std::string rows;
    for (const Setting& row : settings::table())
      if (row.group == group && asked_for(row, about)) rows += help_row(row);
    if (rows.empty()) continue;
    any = true;
    out += "\n" + group + "\n" + rows;
  }
  if (!any) out += fmt::format("\nno option or group is called \"{}\"\n", about);
  return out +
         "\nBooleans have a --no- form. `_` and `-` are alike. Objects: JSON, or one key as --eplb-config.window_size "
         "8.\n"
         "--config FILE.yaml holds the same keys. More: --help=WORD, --help=all, docs/settings.md.\n";
}

namespace {

// A cell of a table: no line ends, and '|' would end it.
std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

std::string answer_of(const Setting& row) {
  switch (row.answer) {
    case Answer::kWorks: break;
    case Answer::kRefused: return "refused: " + row.line;
    case Answer::kNoted: return "noted: " + row.line;
  }
  std::string out = row.only_with.empty() ? "works" : "works with `" + row.only_with + "`";
  if (!row.only_with.empty() && !in_effect(*settings::find(row.only_with))) out += ", which is refused";
  for (const auto& [value, why] : row.refused_values) out += fmt::format("; {} is refused: {}", value, why);
  return out;
}

std::string values_of(const Setting& row) {
  std::string out;
  if (!row.choices.empty())
    out = fmt::format("{}", fmt::join(row.choices, ", "));
  else if (row.kind == Kind::kFlag)
    out = "true, false";
  else
    out = argument_of(row);
  const std::string bounds = bounds_of(row);
  if (!bounds.empty()) out += ", " + bounds;
  if (!row.unit.empty()) out += " (" + row.unit + ")";
  return out;
}

std::string field_row(const Setting& row) {
  std::string names = "`" + row.key + "`";
  for (const std::string& alias : row.aliases) names += " `" + alias + "`";
  std::string environment;
  for (const std::string& name : row.variables) environment += (environment.empty() ? "`" : " `") + name + "`";
  std::string value = default_of(row);
  if (row.kind == Kind::kFlag && value.empty()) value = "off";
  return fmt::format("| {} | {} | {} | {}{} | {} | {} |\n", names, cell(values_of(row)), cell(value), cell(row.help),
                     row.same_on_all_nodes ? " (same on all nodes)" : "", environment, cell(answer_of(row)));
}

std::string fields_section() {
  std::string out;
  for (const std::string& group : groups()) {
    std::string rows;
    for (const Setting& row : settings::table())
      if (row.group == group && (row.has_field || row.kind == Kind::kObject)) rows += field_row(row);
    if (!rows.empty())
      out += fmt::format(
          "\n### {}\n\n| key | values | default | what | environment | answer |\n|---|---|---|---|---|---|\n{}", group,
          rows);
  }
  return out;
}

// Rows without a field, those with one answer in one row.
std::string answers_section(Answer answer) {
  std::vector<std::pair<std::string, std::string>> lines;  // line, keys
  for (const Setting& row : settings::table()) {
    if (row.has_field || row.kind == Kind::kObject || row.answer != answer) continue;
    std::string key = "`" + row.key + "`";
    if (!row.fixed.empty() && !row.fixed[0].empty()) key += fmt::format(" (fine: {})", fmt::join(row.fixed, ", "));
    const auto same = [&](const auto& l) { return l.first == row.line; };
    if (const auto it = std::find_if(lines.begin(), lines.end(), same); it != lines.end())
      it->second += ", " + key;
    else
      lines.emplace_back(row.line, key);
  }
  std::string out = "\n| options | answer |\n|---|---|\n";
  for (const auto& [line, keys] : lines) out += fmt::format("| {} | {} |\n", cell(keys), cell(line));
  return out;
}

std::string variables_section(Answer answer) {
  std::string out = "\n| variable | answer |\n|---|---|\n";
  for (const auto& v : settings::variables())
    if (v.answer == answer) out += fmt::format("| `{}` | {} |\n", v.name, cell(v.line));
  return out;
}

std::string renamed_section() {
  std::string out = "\n| name | taken as |\n|---|---|\n";
  for (const auto& r : settings::renamed()) {
    const char* what = r.inverted ? "the opposite of " : "";
    out += fmt::format("| `{}` | {}`{}` |\n", r.from, what, fmt::join(r.to, "`, `"));
  }
  return out;
}

}  // namespace

std::string settings_markdown() {
  std::string out =
      "# Settings\n\n"
      "Written by `manta settings --markdown` from the table in `src/base/settings/`; do not edit.\n\n"
      "One key is one option (`--max-num-seqs`, `_` and `-` alike), one key of a `--config` file, and one key of\n"
      "`engine_kwargs` in a pd.yaml. The command line wins over the file, the file over the environment. Sizes take\n"
      "`k m g t` (decimal) and `K M G T` (binary). Every option of vLLM 0.11 and 0.33 has one of three answers: it\n"
      "works; it is refused with the reason (when set to anything but its default); it is noted: accepted, with a "
      "line\n"
      "at start that says what it does here instead.\n"
      "\n## Options\n";
  out += fields_section();
  out += "\n## Options that are refused\n" + answers_section(Answer::kRefused);
  out += "\n## Options that are accepted and noted\n" + answers_section(Answer::kNoted);
  out += "\n## Names of other vLLM versions\n" + renamed_section();
  out += "\n## Environment variables that are noted\n" + variables_section(Answer::kNoted);
  out += "\n## Environment variables that are refused\n" + variables_section(Answer::kRefused);
  return out;
}

}  // namespace manta
