// What Unicode 15 and 16 added to the general categories that pre-tokenizer patterns name. PCRE2 10.42 knows Unicode
// 14; Hugging Face `tokenizers` (Oniguruma 6.9.10) knows Unicode 16, and the ids must be its ids. Every entry is a code
// point that Unicode 14 had left unassigned, so that adding it to a class is right (or without effect) for any PCRE2.
#pragma once

#include <cstdint>
#include <span>

namespace manta::text {

struct CodePointRange {
  uint32_t first, last;  // inclusive
};

// category: 'L', 'M', 'N', 'P', 'S' (others gained nothing: an empty span).
std::span<const CodePointRange> added_since_unicode_14(char category);

}  // namespace manta::text
