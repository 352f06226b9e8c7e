// UTF-8 as the text room needs it: where a text stops being well-formed, and a decoder for bytes that come in pieces.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace manta::text {

// Bytes before the first ill-formed or unfinished character; text.size() when the whole text is well-formed.
size_t well_formed_prefix(std::string_view text);

// Turns a byte stream into well-formed UTF-8. A character whose bytes have not all come yet is held back; what can no
// longer become a character turns into one U+FFFD per maximal ill-formed subpart (Unicode §3.9, the same cut as Rust's
// from_utf8_lossy, which the Hugging Face decoder uses). The output does not depend on how the bytes were cut.
class Utf8Stream {
 public:
  void push(std::string_view bytes, std::string& out);
  // Ends the stream: a character still held back becomes one U+FFFD. The stream can then be used anew.
  void finish(std::string& out);

 private:
  void start(uint8_t byte, std::string& out);

  std::array<char, 4> held_{};
  uint8_t num_held_ = 0;
  uint8_t num_missing_ = 0;     // continuation bytes the held character still needs
  uint8_t low_ = 0, high_ = 0;  // bounds of the next continuation byte
};

}  // namespace manta::text
