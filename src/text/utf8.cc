#include "text/utf8.h"

namespace manta::text {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Lead {
  uint8_t num_continuations;  // 0: not a lead byte of a multi-byte character
  uint8_t low, high;          // bounds of the second byte (Unicode table 3-7)
};

constexpr Lead lead_of(uint8_t byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

size_t well_formed_prefix(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    const auto byte = static_cast<uint8_t>(text[pos]);
    if (byte < 0x80) {
      ++pos;
      continue;
    }
    const Lead lead = lead_of(byte);
    if (lead.num_continuations == 0 || pos + lead.num_continuations >= text.size()) return pos;
    const auto second = static_cast<uint8_t>(text[pos + 1]);
    if (second < lead.low || second > lead.high) return pos;
    for (size_t i = 2; i <= lead.num_continuations; ++i) {
      if ((static_cast<uint8_t>(text[pos + i]) & 0xC0) != 0x80) return pos;
    }
    pos += lead.num_continuations + 1;
  }
  return pos;
}

void Utf8Stream::start(uint8_t byte, std::string& out) {
  num_held_ = 0;
  if (byte < 0x80) {
    out.push_back(static_cast<char>(byte));
    return;
  }
  const Lead lead = lead_of(byte);
  if (lead.num_continuations == 0) {
    out.append(kReplacement);
    return;
  }
  held_[num_held_++] = static_cast<char>(byte);
  num_missing_ = lead.num_continuations;
  low_ = lead.low;
  high_ = lead.high;
}

void Utf8Stream::push(std::string_view bytes, std::string& out) {
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (num_held_ == 0) {
      start(byte, out);
    } else if (byte < low_ || byte > high_) {
      out.append(kReplacement);
      start(byte, out);
    } else {
      held_[num_held_++] = c;
      low_ = 0x80;
      high_ = 0xBF;
      if (--num_missing_ == 0) {
        out.append(held_.data(), num_held_);
        num_held_ = 0;
      }
    }
  }
}

void Utf8Stream::finish(std::string& out) {
  if (num_held_ > 0) out.append(kReplacement);
  num_held_ = 0;
}

}  // namespace manta::text
