// Why a request ended. One list for scheduler, engine and front-end; it travels as its number.
#pragma once

#include <cstdint>

namespace manta::sample {

// kAbort is never the scheduler's: who aborts hears no more of the request.
enum class FinishReason : uint8_t { kNone, kStop, kLength, kAbort, kError };

constexpr const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "none";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAbort: return "abort";
    case FinishReason::kError: return "error";
  }
  return "unknown";
}

}  // namespace manta::sample
