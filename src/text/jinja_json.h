// JSON in and out of the Jinja engine's values. Internal to the room: it pulls in the engine's headers.
#pragma once

#include <jinja/value.h>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"

namespace manta::text {

// Thrown through the engine to end a render with exactly this error. Not a std::exception, because the engine catches
// those and wraps them into its own.
struct JinjaAbort {
  Error error;
};

// Throws JinjaAbort beyond max_depth levels. Floats print as Python prints them.
jinja::value to_jinja(const nlohmann::ordered_json& json, int max_depth);

// The tojson filter: value, ensure_ascii=False, indent=None, separators=None, sort_keys=False, as json.dumps has them.
// Throws JinjaAbort for what json.dumps cannot serialise (undefined, functions), and beyond kMaxJsonDepth levels.
jinja::value python_tojson(const jinja::func_args& args);

// What {{ value }} prints in Jinja2: str(value). Nothing for undefined, "None", Python's repr of what lists and objects
// hold. A string comes back as it is.
jinja::value python_print(const jinja::func_args& args);

}  // namespace manta::text
