// The settings table at run time: one row per option, made once from the four .def files beside this header.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace manta::settings {

enum class Kind { kFlag, kInteger, kReal, kText, kIntegerList, kTextList, kJson, kObject };
enum class Answer { kWorks, kRefused, kNoted };

struct Setting {
  std::string key;    // "max_num_seqs"; a key of an object as "eplb_config.window_size"
  std::string group;  // as --help heads it
  Kind kind = Kind::kText;
  bool has_field = false;              // a field of struct Settings, or only an answer
  std::string default_json = "null";   // null: not given
  std::string help, unit;              // help is empty for rows without a field
  std::vector<std::string> aliases;    // with their dashes: "-dp", "--model-tag"
  std::vector<std::string> variables;  // environment names; of several that are set, the last one holds
  std::vector<std::string> choices;    // values that are allowed, any case; empty: all
  std::optional<double> min, max;      // inclusive; for lists of each element
  bool takes_suffix = false;           // 16k, 4M, …
  bool secret = false;                 // never printed
  bool same_on_all_nodes = false;      // part of config_hash
  std::string only_with;               // key that must differ from its default for this one to have an effect

  Answer answer = Answer::kWorks;
  std::string line;                                                 // the reason, or what it does here instead
  std::vector<std::string> fixed;                                   // kRefused: values that are fine nevertheless
  std::vector<std::pair<std::string, std::string>> refused_values;  // kWorks: these values are not, and why
};

// Old name -> ours.
struct Renamed {
  std::string from;
  std::vector<std::string> to;
  bool inverted = false;  // a flag whose opposite ours is
};

// A variable without an option of the same meaning: kNoted or kRefused.
struct Variable {
  std::string name, line;
  Answer answer = Answer::kNoted;
};

std::span<const Setting> table();
std::span<const Renamed> renamed();
std::span<const Variable> variables();

// key in canonical form (`_`, dots). nullptr: no such row.
const Setting* find(std::string_view key);
const Renamed* find_renamed(std::string_view key);
// What the command line calls an option: "max_num_seqs" (canonical), or a short alias "-dp" as typed.
// Returns the canonical key of the row or of a renamed one; nullopt: unknown.
std::optional<std::string> find_option(std::string_view option);

std::string canonical(std::string_view name);  // "--max-num-seqs" or "max_num_seqs" -> "max_num_seqs"
// Keys of our own rows may be written with '-'; keys inside JSON rows are somebody else's and stay as typed.
std::string canonical_path(std::string_view dotted);                       // "eplb-config.window-size" -> our key
std::string canonical_rest(std::string_view base, std::string_view rest);  // rest: ".window-size", of the row base
std::string option_name(std::string_view key);  // "max_num_seqs" -> "--max-num-seqs", dots kept
std::string nearest_name(std::string_view name, std::span<const std::string> known);  // "" when nothing is near

}  // namespace manta::settings
