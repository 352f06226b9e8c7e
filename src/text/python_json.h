// Numbers and strings as Python's json.dumps writes them, because transformers' chat templates put them into prompts.
#pragma once

#include <string>
#include <string_view>

namespace manta::text {

// float.__repr__, with json.dumps' names for what is no number: 1.0, 0.1, 1e-07, 1e+16, NaN, -Infinity.
std::string python_float(double value);

// Appends a quoted string. text is UTF-8; with ensure_ascii other characters become \uXXXX, in surrogate pairs beyond
// U+FFFF (ill-formed bytes: \ufffd).
void append_python_string(std::string_view text, bool ensure_ascii, std::string& out);

}  // namespace manta::text
