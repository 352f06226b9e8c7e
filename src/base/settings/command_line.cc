// The command line's grammar, which is vLLM's: see parse_command_line in base/settings.h. CLI11 has no dotted options,
// list append or multi-letter short names, so words are told apart here, and the table says how many follow.
#include <fmt/format.h>

#include <cctype>
#include <nlohmann/json.hpp>

#include "base/settings.h"
#include "base/settings/assignments.h"
#include "base/settings/value.h"
#include "base/settings/yaml_json.h"

namespace manta {

using nlohmann::json;
using settings::Assignments;
using settings::Kind;
using settings::Setting;

namespace {

// One option as typed, taken apart: "--compilation-config.custom_ops+=+rms_norm".
struct Word {
  std::string path;                  // canonical: "compilation_config.custom_ops"
  std::optional<std::string> value;  // behind '='
  bool append = false;               // '+' behind the name
  bool negated = false;              // --no-
};

// An argument that starts an option; "-5" and "-" are values.
bool is_option(std::string_view arg) {
  return arg.size() > 1 && arg[0] == '-' && !(arg[1] >= '0' && arg[1] <= '9') && arg[1] != '.';
}

bool is_boolean(std::string_view text) {
  return text == "true" || text == "false" || text == "True" || text == "False";
}

class Parser {
 public:
  Parser(std::span<const std::string> args, Assignments& out) : args_(args), out_(out) {}

  void run() {
    while (at_ < args_.size()) {
      const std::string& arg = args_[at_];
      if (literal_ || !is_option(arg)) {
        positional(arg);
        ++at_;
      } else if (arg == "--") {
        literal_ = true;
        ++at_;
      } else {
        option(arg);
      }
    }
    if (model_) out_.set("model", *model_, kOrigin);  // last: it wins over --model, as in vLLM
  }

  std::optional<std::string> help;
  std::optional<std::string> config;

 private:
  void positional(const std::string& arg) {
    if (!model_)
      model_ = arg;
    else
      out_.problem(fmt::format("\"{}\"", arg), "unexpected; there is one MODEL, and options begin with --");
  }

  void option(const std::string& arg) {
    ++at_;
    const Word word = take_apart(arg, at_ < args_.size() ? args_[at_] : "");
    if (word.path == "help" || arg == "-h") {
      help = word.value.value_or("");
      return;
    }
    if (word.path == "config") return config_file(word);
    if (word.append) return append(word);
    const Setting* row = settings::find(word.path);
    if (const auto* old = settings::find_renamed(word.path)) row = settings::find(old->to[0]);
    if (row != nullptr && row->kind == Kind::kFlag) return flag(arg, word);
    if (word.negated) return out_.problem(arg, "only options without argument can be negated with --no-");
    if (row != nullptr && (row->kind == Kind::kTextList || row->kind == Kind::kIntegerList)) return list(word);
    one_value(arg, word, row != nullptr);
  }

  void one_value(const std::string& arg, const Word& word, bool known) {
    if (word.value) return out_.set(word.path, *word.value, kOrigin);
    // Only dotted options may have a value that looks like an option (custom_ops -rms_norm).
    const bool dotted = word.path.find('.') != std::string::npos;
    const bool has_value = at_ < args_.size() && (dotted || !is_option(args_[at_]));
    // An unknown option most likely had a value too, which must not be taken for MODEL.
    if (has_value) return out_.set(word.path, args_[at_++], kOrigin);
    if (known || dotted) return out_.problem(arg, "needs a value");
    out_.set(word.path, "", kOrigin);
  }

  void flag(const std::string& arg, const Word& word) {
    if (word.negated && word.value) return out_.problem(arg, "a --no- option takes no value");
    std::string value = word.negated ? "false" : word.value.value_or("true");
    if (!word.negated && !word.value && at_ < args_.size() && is_boolean(args_[at_])) value = args_[at_++];
    out_.set(word.path, value, kOrigin);
  }

  void list(const Word& word) {
    if (word.path.find('.') != std::string::npos) {  // --object.list takes one value, as vLLM's dotted options do
      if (!word.value && at_ >= args_.size()) return out_.problem(settings::option_name(word.path), "needs a value");
      return out_.set(word.path, word.value ? *word.value : args_[at_++], kOrigin);
    }
    std::vector<std::string> elements;
    if (word.value) elements.push_back(*word.value);
    while (!word.value && at_ < args_.size() && !is_option(args_[at_])) elements.push_back(args_[at_++]);
    if (elements.empty()) return out_.problem(settings::option_name(word.path), "needs at least one value");
    if (elements.size() == 1 && elements[0].starts_with('[')) return out_.set(word.path, elements[0], kOrigin);
    out_.append(word.path, elements, kOrigin);
  }

  void append(const Word& word) {
    if (!word.value && at_ >= args_.size())
      return out_.problem(settings::option_name(word.path) + "+", "needs a value");
    std::string rest = word.value ? *word.value : args_[at_++];
    std::vector<std::string> elements;
    for (size_t comma; (comma = rest.find(',')) != std::string::npos; rest.erase(0, comma + 1))
      elements.push_back(rest.substr(0, comma));
    elements.push_back(rest);
    out_.append(word.path, elements, kOrigin);
  }

  void config_file(const Word& word) {
    if (!word.value && at_ >= args_.size()) return out_.problem("--config", "needs a file");
    if (config) return out_.problem("--config", "given twice");
    config = word.value ? *word.value : args_[at_++];
  }

  // next: the argument behind it, "" at the end.
  static Word take_apart(std::string_view arg, std::string_view next) {
    Word word;
    if (const size_t equals = arg.find('='); equals != std::string_view::npos) {
      word.value = std::string(arg.substr(equals + 1));
      arg = arg.substr(0, equals);
    }
    if (arg.ends_with('+')) {
      word.append = true;
      arg.remove_suffix(1);
    }
    const size_t dot = arg.find('.');
    std::string name(arg.substr(0, dot));
    if (name.size() == 3 && name.starts_with("-O") && std::isdigit(static_cast<unsigned char>(name[2]))) {
      word.value = name.substr(2);  // -O3
      name = "-O";
    }
    const std::string_view value = word.value ? std::string_view(*word.value) : next;
    word.path = option_path(name, dot != std::string_view::npos || value.starts_with('{'), word);
    if (dot != std::string_view::npos) word.path += settings::canonical_rest(word.path, arg.substr(dot));
    return word;
  }

  // The canonical key of an option's name; sets word.negated for --no-x where x is an option and no-x is not.
  static std::string option_path(const std::string& name, bool object, Word& word) {
    // 0.11 called the compilation config -O, 0.33 calls the optimisation level so.
    if (name == "-O") return object ? "compilation_config" : "optimization_level";
    const bool is_long = name.starts_with("--");
    if (const auto key = settings::find_option(is_long ? settings::canonical(name) : name)) return *key;
    std::string key = settings::canonical(name);
    if (is_long && key.starts_with("no_"))
      if (const auto positive = settings::find_option(key.substr(3))) {
        word.negated = true;
        return *positive;
      }
    return key;
  }

  static inline const SettingOrigin kOrigin{SettingSource::kCommandLine, ""};
  std::span<const std::string> args_;
  Assignments& out_;
  size_t at_ = 0;
  bool literal_ = false;  // behind "--"
  std::optional<std::string> model_;
};

}  // namespace

Result<ParsedSettings> parse_command_line(std::span<const std::string> args, const EnvMap& env) {
  // Two walks: the first finds --config and --help, whose values must lie under the others'.
  Assignments ignored;
  Parser first(args, ignored);
  first.run();
  if (first.help) {
    ParsedSettings out;
    out.help = settings_help(*first.help);
    return out;
  }
  Assignments all;
  all.set_environment(env);
  if (first.config) {
    MANTA_ASSIGN(json file, settings::read_yaml(*first.config));
    if (!file.is_object()) return error(ErrorCode::kInvalidArgument, *first.config + ": must hold keys and values");
    for (const auto& [key, value] : file.items())
      all.set(settings::canonical_path(key), value, {SettingSource::kFile, *first.config});
  }
  Parser second(args, all);
  second.run();
  MANTA_ASSIGN(ParsedSettings out, all.resolve());
  if (out.settings.model.empty() && !out.settings.tokenizer && out.settings.executor != "fake")
    return error(ErrorCode::kInvalidArgument, "model: not given; manta serve MODEL, a folder or a Hub id");
  return out;
}

Result<ParsedSettings> settings_from_kwargs(const json& engine_kwargs, const EnvMap& env, const std::string& origin) {
  if (!engine_kwargs.is_object())
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: engine_kwargs must hold keys and values", origin));
  Assignments all;
  all.set_environment(env);
  for (const auto& [key, value] : engine_kwargs.items())
    all.set(settings::canonical_path(key), value, {SettingSource::kCaller, origin});
  return all.resolve();
}

}  // namespace manta
