// The wire between router, api, engine and coordinator: frames of a fixed 24-byte header and a msgpack payload.
//
//   offset  size  field (little endian)
//        0     4  magic "MNTA"
//        4     2  protocol version
//        6     2  kind
//        8     8  epoch of the sender's group
//       16     4  payload bytes, at most kMaxPayloadBytes
//       20     4  reserved, 0
//
// The header is checked before a byte of the payload is kept, the payload's own sizes before it is unpacked. Bulk data
// (cache rows, expert rows) never travels here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/result.h"

namespace manta {

inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 24;
inline constexpr uint32_t kMaxPayloadBytes = 16u << 20;

enum class FrameKind : uint16_t {
  // any connection
  kHello = 1,    // first frame of the side that connected
  kWelcome = 2,  // first frame of the side that accepted
  kRefuse = 3,   // instead of kWelcome: why not; the connection closes after it
  kStale = 4,    // your frame was of another epoch: here is the current one, and what was not done
  kHeartbeat = 5,
  kDrain = 6,  // no new work from here on
  // api <-> engine
  kSubmit = 16,
  kAbort = 17,
  kOutputs = 18,  // one per step and connection
  kEpoch = 19,    // the engine's group moved to another epoch
  kLoad = 20,     // how full the engine is and where it stands, now and then
  // engine, api <-> coordinator
  kJoin = 32,
  kMembership = 33,
  kVote = 34,      // what a rank brings to the next step of its group
  kDecision = 35,  // what the group does in it
  // router <-> api
  kRequest = 48,    // a client's request, tokenized
  kBody = 49,       // more of its body
  kCancel = 50,     // its client is gone
  kPieces = 51,     // parts of answers: one frame per turn of the api's loop
  kRankViews = 52,  // what the api sees of its engines
  // engine <-> engine of another deployment: hand-offs of cache rows, between two connectors' side channels
  kLeaseOpen = 64,
  kLeaseDone,
  kLeaseCancel,
  kLeaseOffer,
  kLeaseConfirmed,
  kLeaseRefused,
  kLast = kLeaseRefused,
};

const char* to_string(FrameKind kind);

struct Frame {
  FrameKind kind = FrameKind::kHello;
  Epoch epoch;
  std::string payload;
};

// The bytes of one frame. The payload must not exceed kMaxPayloadBytes (a bug of the sender: asserted).
std::string encode_frame(FrameKind kind, Epoch epoch, std::string_view payload);

// Cuts a byte stream into frames. After an error the stream is unusable: there is no way to find the next frame.
class FrameDecoder {
 public:
  void feed(std::string_view bytes) { buffer_.append(bytes); }
  // A frame, nothing yet (nullopt), or kDataLoss naming the field, its value and the bound.
  Result<std::optional<Frame>> next();

 private:
  std::string buffer_;
  size_t consumed_ = 0;
};

}  // namespace manta
