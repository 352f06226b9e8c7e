#include "text/white_space.h"

#include <cstdint>

namespace manta::text {

size_t leading_white_space(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0; };
  if ((byte(0) >= 0x09 && byte(0) <= 0x0D) || byte(0) == 0x20) return 1;
  if (byte(0) == 0xC2) return byte(1) == 0x85 || byte(1) == 0xA0 ? 2 : 0;
  const uint32_t three = static_cast<uint32_t>(byte(0)) << 16 | byte(1) << 8 | byte(2);
  const bool is_space = three == 0xE19A80 || (three >= 0xE28080 && three <= 0xE2808A) || three == 0xE280A8 ||
                        three == 0xE280A9 || three == 0xE280AF || three == 0xE2819F || three == 0xE38080;
  return is_space ? 3 : 0;
}

size_t skip_white_space(std::string_view text, size_t pos) {
  while (const size_t bytes = leading_white_space(text.substr(pos))) pos += bytes;
  return pos;
}

size_t white_space_before(std::string_view text, size_t end, size_t low) {
  while (end > low) {
    size_t start = end - 1;
    while (start > low && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
    if (leading_white_space(text.substr(start, end - start)) != end - start) break;
    end = start;
  }
  return end;
}

}  // namespace manta::text
