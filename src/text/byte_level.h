// GPT-2's byte alphabet: each of the 256 bytes written as one printable character, so that any byte string can be a
// key of a JSON vocabulary. 0x20 (space) is "Ġ", 0x0A is "Ċ"; printable Latin-1 stands for itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace manta::text {

// The alphabet's character for a byte, as UTF-8.
std::string_view byte_level_char(uint8_t byte);

// The bytes a vocabulary entry stands for: "Ġthe" -> " the". Empty optional when some character is not of the alphabet
// (special tokens such as "<｜User｜>"), in which case the entry stands for its own UTF-8. token must be well-formed.
std::optional<std::string> byte_level_bytes(std::string_view token);

}  // namespace manta::text
