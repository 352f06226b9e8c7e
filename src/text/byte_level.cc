#include "text/byte_level.h"

#include <array>

namespace manta::text {

namespace {

constexpr uint32_t kNumCodePoints = 256 + 68;  // the 68 unprintable bytes are moved to U+0100 and up, in byte order

struct Alphabet {
  std::array<std::array<char, 2>, 256> utf8{};
  std::array<uint8_t, 256> length{};
  std::array<int16_t, kNumCodePoints> byte_of{};  // -1: not a character of the alphabet
};

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.byte_of) byte = -1;
  uint32_t next_moved = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const uint32_t code_point = stands_for_itself(byte) ? byte : next_moved++;
    alphabet.byte_of[code_point] = static_cast<int16_t>(byte);
    if (code_point < 0x80) {
      alphabet.utf8[byte] = {static_cast<char>(code_point), 0};
      alphabet.length[byte] = 1;
    } else {
      alphabet.utf8[byte] = {static_cast<char>(0xC0 | (code_point >> 6)),
                             static_cast<char>(0x80 | (code_point & 0x3F))};
      alphabet.length[byte] = 2;
    }
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string_view byte_level_char(uint8_t byte) {
  return {kAlphabet.utf8[byte].data(), kAlphabet.length[byte]};
}

std::optional<std::string> byte_level_bytes(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t pos = 0; pos < token.size();) {
    const auto lead = static_cast<uint8_t>(token[pos]);
    uint32_t code_point = lead;
    if (lead >= 0xE0) return std::nullopt;  // three bytes and more: beyond U+07FF
    if (lead >= 0xC0) code_point = (lead & 0x1Fu) << 6 | (static_cast<uint8_t>(token[pos + 1]) & 0x3Fu);
    if (code_point >= kNumCodePoints || kAlphabet.byte_of[code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of[code_point]));
    pos += lead >= 0xC0 ? 2 : 1;
  }
  return bytes;
}

}  // namespace manta::text
