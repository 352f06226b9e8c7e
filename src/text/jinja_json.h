// JSON in and out of the Jinja engine's values. Internal to the room: it pulls in the engine's headers.
#pragma once

#include <jinja/value.h>

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"

namespace manta::text {

// Thrown through the engine to end a render with exactly this error. Not a std::exception, because the engine catches
// those and wraps them into its own.
struct JinjaAbort {
  Error error;
};

[[noreturn]] void abort_render(std::string message);  // with kInvalidArgument

// Throws JinjaAbort beyond max_depth levels. Adds the number of values made to num_items.
jinja::value to_jinja(const nlohmann::ordered_json& json, int max_depth, size_t& num_items);

// The tojson filter: value, ensure_ascii=False, indent=None, separators=None, sort_keys=False, as json.dumps has them.
// Throws JinjaAbort for what json.dumps cannot serialise (undefined, functions), and beyond kMaxJsonDepth levels.
jinja::value python_tojson(const jinja::func_args& args);

// What {{ value }} prints in Jinja2: str(value). Nothing for undefined, "None", Python's repr of what lists and objects
// hold. A string comes back as it is.
jinja::value python_print(const jinja::func_args& args);

}  // namespace manta::text
