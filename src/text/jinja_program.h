// A Jinja template, parsed once and rendered by any number of threads at once. The engine is llama.cpp's; this class
// makes it safe to run and closer to transformers:
// - tojson writes what json.dumps(ensure_ascii=False) writes, keys in their order (the engine's own prints 1.0 as 1),
// and
//   {{ x }} prints Python's str(x) (the engine's own prints none and the brackets of a list as nothing),
// - range, loops and recursion are bounded, nesting of the source is bounded before it is parsed, lists cannot be
// changed,
// - every exception comes back as an Error; raise_exception's with the template's own message.
// A known difference from Jinja2 remains: joining none or undefined to a string with + counts as "" instead of failing.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "base/result.h"

namespace manta::text {

class JinjaProgram {
 public:
  static constexpr size_t kMaxSourceBytes = 1 << 20;
  static constexpr int kMaxTagTokens = 1000;    // in one {{ }} or {% %}
  static constexpr int kMaxNesting = 64;        // of brackets
  static constexpr int kMaxBlockNesting = 128;  // of if, for, …, each elif counted
  static constexpr int kMaxRange = 100'000;     // Jinja2's sandbox has the same bound
  // Of all loops and macro calls in one render; kIterationsPerItem more for every list item, member and value given.
  static constexpr int kMaxIterations = 20'000;
  static constexpr int kIterationsPerItem = 8;
  static constexpr int kMaxJsonDepth = 128;              // of the variables
  static constexpr size_t kMaxRecursionBytes = 1 << 20;  // stack that nested macro calls may use

  // kInvalidArgument: the source is not a template, or beyond a bound.
  static Result<JinjaProgram> parse(const std::string& source);

  struct Variable {
    std::string name;
    const nlohmann::ordered_json* value;  // borrowed
  };
  // Of variables with the same name the last counts. kInvalidArgument: the template raised an exception or used a value
  // in a way it does not allow, or a bound was reached.
  Result<std::string> render(std::span<const Variable> variables) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace manta::text
