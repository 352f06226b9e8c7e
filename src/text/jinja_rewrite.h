// Changes a parsed template where the engine would do something else than Jinja2 in transformers, or would not end.
// Internal to the room: it pulls in the engine's headers.
#pragma once

#include <jinja/runtime.h>

namespace manta::text {

// Puts guards (jinja_bounds.h) into loops and macros, and calls of our functions where the engine's own printing,
// tojson and assignment to namespaces stood. Throws std::runtime_error for a template that cannot be mended.
void rewrite_program(jinja::program& program);

// Defines the functions that a rewritten program calls, and our range and raise_exception.
void define_functions(jinja::context& context);

}  // namespace manta::text
