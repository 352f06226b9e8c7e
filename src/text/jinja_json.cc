#include "text/jinja_json.h"

#include <fmt/format.h>
#include <jinja/runtime.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "text/jinja_program.h"
#include "text/python_json.h"

namespace manta::text {

namespace {

using jinja::is_val;
using jinja::mk_val;
using nlohmann::ordered_json;

struct PythonFloat : jinja::value_float_t {
  // The engine's constructor converts to int64 whatever the value is.
  explicit PythonFloat(double value) : value_float_t(std::abs(value) < 9e18 ? value : 0.0) { val_flt = value; }
  jinja::string as_string() const override { return python_float(val_flt); }
};

// An integer beyond int64: counts as a float, prints as itself.
struct BigInteger : PythonFloat {
  explicit BigInteger(uint64_t value) : PythonFloat(static_cast<double>(value)), digits(std::to_string(value)) {}
  jinja::string as_string() const override { return digits; }
  std::string digits;
};

// json.dumps.
class Dumper {
 public:
  struct Options {
    bool ensure_ascii = false, sort_keys = false;
    std::optional<std::string> indent;  // one level of it
    std::string item_separator = ", ", key_separator = ": ";
  };
  explicit Dumper(Options options) : options_(std::move(options)) {}

  std::string dump(const jinja::value& value) {
    write(value, 0);
    return std::move(out_);
  }

 private:
  void write(const jinja::value& value, int depth) {
    if (depth > JinjaProgram::kMaxJsonDepth) abort_render("tojson: the value is nested too deeply");
    if (is_val<jinja::value_none>(value)) {
      out_ += "null";
    } else if (is_val<jinja::value_bool>(value)) {
      out_ += value->as_bool() ? "true" : "false";
    } else if (is_val<jinja::value_int>(value)) {
      out_ += std::to_string(value->as_int());
    } else if (is_val<jinja::value_float>(value)) {
      write_float(value);
    } else if (is_val<jinja::value_string>(value)) {
      append_python_string(value->as_string().str(), options_.ensure_ascii, out_);
    } else if (is_val<jinja::value_array>(value)) {
      write_array(value, depth);
    } else if (is_val<jinja::value_object>(value)) {
      write_object(value, depth);
    } else {
      abort_render(fmt::format("tojson: a value of type {} is not JSON serializable", value->type()));
    }
  }

  void write_float(const jinja::value& value) {
    const auto* big = dynamic_cast<const BigInteger*>(value.get());
    out_ += big != nullptr ? big->digits : python_float(value->as_float());
  }

  void write_array(const jinja::value& value, int depth) {
    const auto& items = value->as_array();
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      start_item(i == 0, depth + 1);
      write(items[i], depth + 1);
    }
    end_items(items.empty(), depth);
    out_ += ']';
  }

  void write_object(const jinja::value& value, int depth) {
    std::vector<std::pair<std::string, jinja::value>> items;
    for (const auto& [key, item] : value->as_ordered_object()) items.emplace_back(key_of(key), item);
    if (options_.sort_keys) {
      std::stable_sort(items.begin(), items.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    }
    out_ += '{';
    for (size_t i = 0; i < items.size(); ++i) {
      start_item(i == 0, depth + 1);
      append_python_string(items[i].first, options_.ensure_ascii, out_);
      out_ += options_.key_separator;
      write(items[i].second, depth + 1);
    }
    end_items(items.empty(), depth);
    out_ += '}';
  }

  static std::string key_of(const jinja::value& key) {
    if (is_val<jinja::value_string>(key)) return key->as_string().str();
    if (is_val<jinja::value_none>(key)) return "null";
    if (is_val<jinja::value_bool>(key)) return key->as_bool() ? "true" : "false";
    if (is_val<jinja::value_int>(key)) return std::to_string(key->as_int());
    if (is_val<jinja::value_float>(key)) return python_float(key->as_float());
    abort_render(fmt::format("tojson: keys must be str, int, float, bool or None, not {}", key->type()));
  }

  void start_item(bool is_first, int depth) {
    if (!is_first) out_ += options_.item_separator;
    new_line(depth);
  }
  void end_items(bool is_empty, int depth) {
    if (!is_empty) new_line(depth);
  }
  void new_line(int depth) {
    if (!options_.indent) return;
    out_ += '\n';
    for (int i = 0; i < depth; ++i) out_ += *options_.indent;
  }

  Options options_;
  std::string out_;
};

// str.__repr__, but characters beyond ASCII always stand for themselves (Python escapes the unprintable ones).
std::string repr_of(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (c == quote || c == '\\') {
      out += {'\\', c};
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : (c == '\r' ? "\\r" : "\\t");
    } else if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + quote;
}

// repr(value) as Python gives it for what JSON can hold.
void append_repr(const jinja::value& value, int depth, std::string& out) {
  if (depth > JinjaProgram::kMaxJsonDepth) abort_render("a value that is nested too deeply is printed");
  if (is_val<jinja::value_none>(value)) {
    out += "None";
  } else if (is_val<jinja::value_string>(value)) {
    out += repr_of(value->as_string().str());
  } else if (is_val<jinja::value_array>(value)) {
    const bool is_tuple = is_val<jinja::value_tuple>(value);
    const auto& items = value->as_array();
    out += is_tuple ? '(' : '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += ", ";
      append_repr(items[i], depth + 1, out);
    }
    out += is_tuple ? (items.size() == 1 ? ",)" : ")") : "]";
  } else if (is_val<jinja::value_object>(value)) {
    bool is_first = true;
    out += '{';
    for (const auto& [key, item] : value->as_ordered_object()) {
      if (!std::exchange(is_first, false)) out += ", ";
      append_repr(key, depth + 1, out);
      out += ": ";
      append_repr(item, depth + 1, out);
    }
    out += '}';
  } else if (is_val<jinja::value_float>(value) && dynamic_cast<const BigInteger*>(value.get()) == nullptr) {
    const double number = value->as_float();
    out += std::isnan(number) ? "nan" : (std::isinf(number) ? (number > 0 ? "inf" : "-inf") : python_float(number));
  } else if (value->is_undefined()) {
    out += "Undefined";
  } else {
    out += value->as_string().str();  // integers, booleans; functions throw
  }
}

Dumper::Options dump_options(const jinja::func_args& args) {
  Dumper::Options options;
  options.ensure_ascii = args.get_kwarg_or_pos("ensure_ascii", 1)->as_bool();
  const jinja::value indent = args.get_kwarg_or_pos("indent", 2);
  if (is_val<jinja::value_int>(indent)) {
    const int64_t width = indent->as_int();
    if (width > 64) abort_render(fmt::format("tojson: indent {}, at most 64 is allowed", width));
    options.indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  } else if (is_val<jinja::value_string>(indent)) {
    options.indent = indent->as_string().str();
  }
  if (options.indent) options.item_separator = ",";
  const jinja::value separators = args.get_kwarg_or_pos("separators", 3);
  if (is_val<jinja::value_array>(separators)) {
    if (separators->as_array().size() != 2) abort_render("tojson: separators must be a pair");
    options.item_separator = separators->as_array()[0]->as_string().str();
    options.key_separator = separators->as_array()[1]->as_string().str();
  }
  options.sort_keys = args.get_kwarg_or_pos("sort_keys", 4)->as_bool();
  return options;
}

}  // namespace

void abort_render(std::string message) {
  throw JinjaAbort{error(ErrorCode::kInvalidArgument, std::move(message))};
}

jinja::value to_jinja(const ordered_json& json, int max_depth, size_t& num_items) {
  ++num_items;
  if (max_depth < 0) abort_render("the chat template's variables are nested too deeply");
  switch (json.type()) {
    case ordered_json::value_t::boolean: return mk_val<jinja::value_bool>(json.get<bool>());
    case ordered_json::value_t::string: return mk_val<jinja::value_string>(json.get_ref<const std::string&>());
    case ordered_json::value_t::number_float: return std::make_shared<PythonFloat>(json.get<double>());
    case ordered_json::value_t::number_integer: return mk_val<jinja::value_int>(json.get<int64_t>());
    case ordered_json::value_t::number_unsigned: {
      const auto value = json.get<uint64_t>();
      if (value > INT64_MAX) return std::make_shared<BigInteger>(value);
      return mk_val<jinja::value_int>(static_cast<int64_t>(value));
    }
    case ordered_json::value_t::array: {
      auto array = mk_val<jinja::value_array>();
      for (const auto& item : json) array->push_back(to_jinja(item, max_depth - 1, num_items));
      return array;
    }
    case ordered_json::value_t::object: {
      auto object = mk_val<jinja::value_object>();
      for (const auto& [key, item] : json.items()) object->insert(key, to_jinja(item, max_depth - 1, num_items));
      return object;
    }
    default: return mk_val<jinja::value_none>();
  }
}

jinja::value python_print(const jinja::func_args& args) {
  const jinja::value value = args.get_pos(0);
  if (is_val<jinja::value_string>(value)) return value;
  std::string text;
  if (!value->is_undefined()) append_repr(value, 0, text);
  return mk_val<jinja::value_string>(text);
}

jinja::value python_tojson(const jinja::func_args& args) {
  args.ensure_count(1, 5);
  return mk_val<jinja::value_string>(Dumper(dump_options(args)).dump(args.get_pos(0)));
}

}  // namespace manta::text
