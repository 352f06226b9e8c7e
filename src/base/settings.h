// The settings of a manta process: one table (base/settings/settings.def and its two neighbours) from which come this
// struct, the command line, YAML and engine_kwargs keys, --help, environment names and docs/settings.md.
//
// Every option that vLLM 0.11 or 0.33 knows gets one of three answers: it works; it is refused with the reason; it is
// accepted with one line (a note) saying what it does here instead. Nothing is silently ignored.
//
// Parsed once at start, checked whole (all problems in one error), then passed by const reference; child processes get
// the same values as JSON over an inherited descriptor. Start-up only, so nothing here is fast or thread-aware.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/result.h"

namespace manta {

// A JSON object whose keys are not ours to know (kv_connector_extra_config, hf_overrides): kept as text, parsed by the
// room that reads it. Always valid JSON, keys sorted, no spaces.
struct JsonText {
  std::string text = "{}";
  bool operator==(const JsonText&) const = default;
};

// One field per row of settings.def; look there for help, unit, bounds and answer.
struct Settings {
#define SETTING(type, name, default_value, ...) type name = default_value;
#define FIELD(object, type, name, default_value, ...) type name = default_value;
#define OBJECT(Type, path, name, ...) struct Type {
#define END_OBJECT(Type, name)                  \
  bool operator==(const Type&) const = default; \
  }                                             \
  ;                                             \
  Type name;
#include "base/settings/settings.def"
  bool operator==(const Settings&) const = default;
};

using EplbConfig = Settings::EplbConfig;
using CompilationConfig = Settings::CompilationConfig;
using KvTransferConfig = Settings::KvTransferConfig;
using SpeculativeConfig = Settings::SpeculativeConfig;

enum class SettingSource { kDefault, kEnvironment, kFile, kCaller, kCommandLine };

// Where a value came from. where: the variable's name, the file's path, or "" for default and command line.
struct SettingOrigin {
  SettingSource source = SettingSource::kDefault;
  std::string where;
};
std::string to_string(const SettingOrigin& origin);  // "default", "environment VLLM_API_KEY", "serve.yaml", …

struct ParsedSettings {
  Settings settings;
  std::map<std::string, SettingOrigin> origins;  // by key ("eplb_config.window_size"); a key not in it has its default
  std::vector<std::string> notes;                // one line each, to be printed at start
  std::optional<std::string> help;               // --help was asked: print this and exit 0; settings are not filled
};

// args: what follows "manta serve". MODEL may stand anywhere among them. Accepted forms:
//   --max-num-seqs 8, --max_num_seqs=8, -dp 4        `_` and `-` alike in every option; vLLM's short names
//   --enable-eplb, --no-enable-eplb                  booleans; --x=false too
//   --eplb-config '{"window_size":"1000"}'           objects as JSON; numbers and booleans may be strings
//   --eplb-config.window_size 1000                   one key of an object; objects given in parts are merged
//   --compilation-config.custom_ops+ +rms_norm       append to a list, commas separate
//   --max-model-len 16k                              k m g t decimal, K M G T binary, on sizes
//   --config FILE.yaml                               the same keys; the command line wins
// A flag wins over the file, the file over the environment. All problems are in one error, one line each.
Result<ParsedSettings> parse_command_line(std::span<const std::string> args, const EnvMap& env);

// The same table for the engine_kwargs of a pd.yaml or of Ray. origin names the place for messages ("pd.yaml decode").
// env: the deployment's own variables (runtime_env.env_vars over the process environment).
Result<ParsedSettings> settings_from_kwargs(const nlohmann::json& engine_kwargs, const EnvMap& env,
                                            const std::string& origin);

// What no single row can see: settings that need or exclude each other. Both parsers call it.
Status validate(const Settings& settings);

// Complete and exact: from_json(to_json(s)) == s. For child processes of the same build; unknown or missing keys are
// errors, because they mean that parent and child are not the same program.
std::string to_json(const Settings& settings);
Result<Settings> settings_from_json(const std::string& text);

// The nodes of one deployment must agree on the rows marked same_on_all_nodes. The hash is compared at the handshake;
// when it differs, first_difference names the key (in table order) and both values.
struct SettingDifference {
  std::string key, here, there;
};
std::string config_hash(const Settings& settings);  // of shared_settings(): 16 hex digits
std::string config_hash(const std::vector<std::pair<std::string, std::string>>& shared_settings);
// Those rows as text, in table order: what an engine shows the coordinator when it joins.
std::vector<std::pair<std::string, std::string>> shared_settings(const Settings& settings);
std::optional<SettingDifference> first_difference(const Settings& here, const Settings& there);

// "max_num_seqs=512 (command line)" for each value that is not its default, in table order. Secrets show as ***.
std::vector<std::string> changed_settings(const ParsedSettings& parsed);

// about: "" for the options that work, a group's or option's name (or a part of it) for those, "all" for every row.
std::string settings_help(const std::string& about);
std::string settings_markdown();  // docs/settings.md, whole

}  // namespace manta
