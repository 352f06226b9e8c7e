#include "base/settings/assignments.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/settings/fields.h"
#include "base/settings/json_fields.h"
#include "base/settings/value.h"

namespace manta::settings {

using nlohmann::json;

void Lines::add(const std::string& subject, const std::string& line) {
  for (auto& [known, subjects] : lines_) {
    if (known != line) continue;
    if (std::find(subjects.begin(), subjects.end(), subject) == subjects.end()) subjects.push_back(subject);
    return;
  }
  lines_.push_back({line, {subject}});
}

std::string Lines::joined() const {
  return fmt::format("{}", fmt::join(text(), "\n"));
}

std::vector<std::string> Lines::text() const {
  std::vector<std::string> out;
  for (const auto& [line, subjects] : lines_) out.push_back(fmt::format("{}: {}", fmt::join(subjects, ", "), line));
  return out;
}

namespace {

// " (environment VLLM_DP_SIZE)"; nothing for the command line, where the user is looking already.
std::string place(const SettingOrigin& origin) {
  return origin.source == SettingSource::kCommandLine ? "" : fmt::format(" ({})", to_string(origin));
}

// A value in a message: as typed, but not by the page.
std::string brief(const json& value) {
  constexpr size_t kMost = 120;
  const std::string text = show(value);
  return text.size() <= kMost ? text : text.substr(0, kMost) + "...";
}

// The rows one may have meant by path: those of the same object, or all options.
std::vector<std::string> siblings(const std::string& path) {
  const size_t dot = path.rfind('.');
  const std::string prefix = dot == std::string::npos ? "" : path.substr(0, dot + 1);
  std::vector<std::string> out;
  auto add = [&](const std::string& key) {
    if (key.starts_with(prefix) && key.find('.', prefix.size()) == std::string::npos) out.push_back(key);
  };
  for (const Setting& s : table()) add(s.key);
  for (const Renamed& r : renamed()) add(r.from);
  return out;
}

// The longest row that path lies inside of: "a.b" for "a.b.c.d". nullptr: none.
const Setting* enclosing_row(const std::string& path) {
  for (size_t dot = path.rfind('.'); dot != std::string::npos && dot > 0; dot = path.rfind('.', dot - 1))
    if (const Setting* row = find(std::string_view(path).substr(0, dot))) return row;
  return nullptr;
}

// Walks the dotted rest of a path into an object, making objects on the way.
json& descend(json& object, std::string_view rest) {
  json* at = &object;
  while (!rest.empty()) {
    const size_t dot = rest.find('.');
    if (!at->is_object()) *at = json::object();
    at = &(*at)[std::string(rest.substr(0, dot))];
    rest = dot == std::string_view::npos ? "" : rest.substr(dot + 1);
  }
  return *at;
}

// Not json::merge_patch, for which null deletes: a null in hf_overrides is a value.
void merge(json& into, const json& from) {
  for (const auto& [key, value] : from.items())
    if (json& at = into[key]; at.is_object() && value.is_object())
      merge(at, value);
    else
      at = value;
}

}  // namespace

void Assignments::unknown(const std::string& path, const SettingOrigin& origin) {
  const bool typed = origin.source == SettingSource::kCommandLine;
  const std::string near = nearest_name(path, siblings(path));
  const std::string hint = near.empty() ? "" : fmt::format("; nearest: {}", typed ? option_name(near) : near);
  problem(typed ? option_name(path) : path,
          fmt::format("unknown {}{}{}", typed ? "option" : "key", place(origin), hint));
}

void Assignments::set(const std::string& path, const json& value, const SettingOrigin& origin) {
  if (value.is_null()) return;
  if (const Renamed* row = find_renamed(path)) return set_renamed(*row, value, origin);
  const Setting* row = find(path);
  if (row != nullptr && row->kind == Kind::kObject) return set_object(path, value, origin);
  if (row != nullptr) return set_row(*row, value, origin);
  if (set_inside_json(path, value, origin, false)) return;
  if (path.starts_with("no_"))  // no_enable_prefix_caching: true, as vLLM's config files may say
    if (const Setting* positive = find(path.substr(3)); positive != nullptr && positive->kind == Kind::kFlag)
      if (const auto off = coerce(*positive, value); off.ok()) return set_row(*positive, !off->get<bool>(), origin);
  unknown(path, origin);
}

void Assignments::set_renamed(const Renamed& row, const json& value, const SettingOrigin& origin) {
  if (row.inverted) {
    Setting flag;
    flag.kind = Kind::kFlag;
    const auto on = coerce(flag, value);
    if (!on.ok()) return problem(fmt::format("{} {}", row.from, brief(value)), on.error().message);
    note(row.from, fmt::format("another vLLM version's name; taken as {} = {}", row.to[0], !on->get<bool>()));
    return set(row.to[0], !on->get<bool>(), origin);
  }
  note(row.from, fmt::format("another vLLM version's name; taken as {}", fmt::join(row.to, " and ")));
  for (const std::string& key : row.to) set(key, value, origin);
}

void Assignments::set_object(const std::string& path, const json& value, const SettingOrigin& origin) {
  json object = value;
  if (value.is_string()) object = parse_json(value.get_ref<const std::string&>());
  if (!object.is_object())
    return problem(fmt::format("{} {}", path, brief(value)),
                   "must be a JSON object, as in '{\"key\": 1}'" + place(origin));
  for (const auto& [key, element] : object.items()) set(path + "." + canonical(key), element, origin);
}

bool Assignments::set_inside_json(const std::string& path, const json& value, const SettingOrigin& origin,
                                  bool append) {
  const Setting* row = enclosing_row(path);
  if (row == nullptr || row->kind != Kind::kJson) return false;
  if (std::count(path.begin(), path.end(), '.') > kMaxJsonDepth) {
    problem(row->key, fmt::format("keys are nested deeper than {}", kMaxJsonDepth));
    return true;
  }
  json inner = json::object();
  if (const auto it = given_.find(row->key); append && it != given_.end() && it->second.value.is_object())
    inner = it->second.value;
  json& leaf = descend(inner, std::string_view(path).substr(row->key.size() + 1));
  if (!append) {
    leaf = value.is_string() ? parse_loose(value.get_ref<const std::string&>()) : value;
  } else {
    if (!leaf.is_array()) leaf = json::array();
    for (const json& element : value) leaf.push_back(parse_loose(element.get_ref<const std::string&>()));
  }
  set_row(*row, inner, origin);
  return true;
}

// Later wins; JSON objects are merged key by key; a list option that is repeated in one place grows.
void Assignments::set_row(const Setting& row, json value, const SettingOrigin& origin) {
  if (row.kind == Kind::kJson && value.is_string())
    if (json parsed = parse_json(value.get_ref<const std::string&>()); parsed.is_object()) value = parsed;
  const auto [it, fresh] = given_.try_emplace(row.key, Given{value, origin});
  if (fresh) return;
  Given& given = it->second;
  const bool same_place = given.origin.source == origin.source && given.origin.where == origin.where;
  if (row.kind == Kind::kJson && given.value.is_object() && value.is_object()) {
    merge(given.value, value);
  } else {
    if (same_place && given.value != value && origin.source == SettingSource::kCommandLine)
      note(row.key, fmt::format("given twice; {} is used", row.secret ? "the second" : brief(value)));
    given.value = std::move(value);
  }
  given.origin = origin;
}

void Assignments::append(const std::string& path, const std::vector<std::string>& elements,
                         const SettingOrigin& origin) {
  if (const Renamed* old = find_renamed(path); old != nullptr && !old->inverted) {
    note(old->from, fmt::format("another vLLM version's name; taken as {}", fmt::join(old->to, " and ")));
    for (const std::string& key : old->to) append(key, elements, origin);
    return;
  }
  const Setting* row = find(path);
  if (row == nullptr) {
    if (!set_inside_json(path, elements, origin, true)) unknown(path, origin);
    return;
  }
  if (row->kind != Kind::kTextList && row->kind != Kind::kIntegerList)
    return problem(option_name(path) + "+", "not a list, so nothing can be appended");
  json list = json::array();
  if (const auto it = given_.find(row->key); it != given_.end() && it->second.origin.source == origin.source)
    list = it->second.value.is_array() ? it->second.value : json::array({it->second.value});
  for (const std::string& element : elements) list.push_back(element);
  given_[row->key] = {list, origin};
}

void Assignments::set_environment(const EnvMap& env) {
  for (const Setting& row : table())
    for (const std::string& name : row.variables)
      if (const auto it = env.find(name); it != env.end() && !it->second.empty())
        set(row.key, it->second, {SettingSource::kEnvironment, name});
  set_variables_without_option(env);
}

void Assignments::set_variables_without_option(const EnvMap& env) {
  std::vector<std::string> known;
  for (const Setting& row : table()) known.insert(known.end(), row.variables.begin(), row.variables.end());
  for (const Variable& v : variables()) known.push_back(v.name);
  for (const auto& [name, value] : env) {
    if (value.empty()) continue;
    const auto it = std::find_if(variables().begin(), variables().end(),
                                 [&name = name](const Variable& v) { return v.name == name; });
    if (it != variables().end()) {
      const bool off = value == "0" || value == "false" || value == "False";
      if (it->answer == Answer::kNoted) note(name, it->line);
      if (it->answer == Answer::kRefused && !off) refuse(name, it->line);
    } else if ((name.starts_with("VLLM_") || name.starts_with("MANTA_")) &&
               std::find(known.begin(), known.end(), name) == known.end()) {
      const std::string near = nearest_name(name, known);
      note(name, "not known to manta, no effect" + (near.empty() ? "" : "; nearest: " + near));
    }
  }
}

void Assignments::resolve_row(const Setting& row, const Given& given, json& values) {
  const auto value = coerce(row, given.value);
  if (!value.ok()) {
    return problem(fmt::format("{} {}", row.key, row.secret ? "***" : brief(given.value)),
                   value.error().message + place(given.origin));
  }
  const bool refused_value = std::any_of(row.refused_values.begin(), row.refused_values.end(),
                                         [&](const auto& refused) { return *value == json(refused.first); });
  if (row.has_field && !refused_value) values[row.key] = *value;
  // An object that is refused whole names itself once, not each of its keys.
  const size_t dot = row.key.find('.');
  const Setting* object = dot == std::string::npos ? nullptr : find(row.key.substr(0, dot));
  if (object != nullptr && object->answer == Answer::kRefused) return refuse(object->key, object->line);
  if (const std::string why = refusal(row, *value); !why.empty()) {
    // Where other values are fine, the message says which one is not.
    const bool has_fine_values = refused_value || !row.fixed.empty() || row.default_json != "null";
    const bool shown = has_fine_values && row.kind != Kind::kFlag;
    return refuse(shown ? fmt::format("{} {}", row.key, brief(*value)) : row.key, why);
  }
  const bool says_nothing = row.kind == Kind::kFlag && *value == json::parse(row.default_json);
  if (row.answer == Answer::kNoted && !says_nothing) note(row.key, row.line);
}

// A limit that was not given follows those that were.
void Assignments::derive(Settings& s) {
  if (given_.contains("max_num_batched_tokens")) return;
  const int64_t whole_prompt = s.enable_chunked_prefill ? 0 : s.max_model_len.value_or(0);
  const int64_t least = std::max(s.max_num_seqs, whole_prompt);
  if (least <= s.max_num_batched_tokens) return;
  s.max_num_batched_tokens = least;
  note("max_num_batched_tokens",
       fmt::format("raised to {} for {}", least, least == s.max_num_seqs ? "max_num_seqs" : "prompts in one piece"));
}

void Assignments::note_without_effect(const json& values) {
  for (const Setting& row : table()) {
    if (row.only_with.empty()) continue;
    const auto differs = [&](const std::string& key) {
      return values.contains(key) && values[key] != json::parse(find(key)->default_json);
    };
    if (differs(row.key) && !differs(row.only_with)) note(row.key, "no effect without " + row.only_with);
  }
}

Result<ParsedSettings> Assignments::resolve() {
  ParsedSettings out;
  json values = json::object();
  for (const Setting& row : table()) {
    const auto it = given_.find(row.key);
    if (it == given_.end()) continue;
    resolve_row(row, it->second, values);
    if (row.has_field) out.origins[row.key] = it->second.origin;
  }
  for_each_field(out.settings, [&](const char* key, auto& field) {
    if (const auto it = values.find(key); it != values.end()) field_from_json(*it, field);
  });
  if (!problems_.empty())
    return error(only_refused_ ? ErrorCode::kUnimplemented : ErrorCode::kInvalidArgument, problems_.joined());
  derive(out.settings);
  MANTA_TRY(validate(out.settings));
  note_without_effect(values);
  out.notes = notes_.text();
  return out;
}

}  // namespace manta::settings

namespace manta {

std::string to_string(const SettingOrigin& origin) {
  switch (origin.source) {
    case SettingSource::kDefault: return "default";
    case SettingSource::kEnvironment: return "environment " + origin.where;
    case SettingSource::kFile:
    case SettingSource::kCaller: return origin.where;
    case SettingSource::kCommandLine: return "command line";
  }
  return "?";
}

}  // namespace manta
