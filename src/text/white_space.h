// White space as Unicode's White_Space property has it, in UTF-8.
#pragma once

#include <cstddef>
#include <string_view>

namespace manta::text {

// Bytes of the white-space character that text starts with, 0 when there is none.
size_t leading_white_space(std::string_view text);

// First position at or after pos that is not white space.
size_t skip_white_space(std::string_view text, size_t pos);

// Start of the run of white space that ends at `end`, not before `low`.
size_t white_space_before(std::string_view text, size_t end, size_t low);

}  // namespace manta::text
