#include "base/frame.h"

#include <fmt/format.h>

#include <bit>
#include <cassert>
#include <cstring>

namespace manta {
namespace {

static_assert(std::endian::native == std::endian::little, "the header is written as the machine holds it");

constexpr uint32_t kMagic = 0x41544e4d;  // "MNTA"

struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t kind;
  uint64_t epoch;
  uint32_t length;
  uint32_t reserved;
};
static_assert(sizeof(Header) == kFrameHeaderBytes);

Status check(const Header& h) {
  if (h.magic != kMagic) {
    return error(ErrorCode::kDataLoss, fmt::format("frame magic {:#010x}: expected {:#010x}", h.magic, kMagic));
  }
  if (h.version != kProtocolVersion) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("protocol version {}: this process speaks {}; run the same manta on every node", h.version,
                             kProtocolVersion));
  }
  if (h.kind == 0 || h.kind > static_cast<uint16_t>(FrameKind::kLast)) {
    return error(ErrorCode::kDataLoss, fmt::format("frame kind {}: not one of this protocol", h.kind));
  }
  if (h.length > kMaxPayloadBytes) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("frame payload of {} bytes: at most {}", h.length, kMaxPayloadBytes));
  }
  if (h.reserved != 0) {
    return error(ErrorCode::kDataLoss, fmt::format("frame reserved field {}: must be 0", h.reserved));
  }
  return {};
}

}  // namespace

const char* to_string(FrameKind kind) {
  switch (kind) {
    case FrameKind::kHello: return "hello";
    case FrameKind::kWelcome: return "welcome";
    case FrameKind::kRefuse: return "refuse";
    case FrameKind::kStale: return "stale";
    case FrameKind::kHeartbeat: return "heartbeat";
    case FrameKind::kDrain: return "drain";
    case FrameKind::kSubmit: return "submit";
    case FrameKind::kAbort: return "abort";
    case FrameKind::kOutputs: return "outputs";
    case FrameKind::kEpoch: return "epoch";
    case FrameKind::kLoad: return "load";
    case FrameKind::kJoin: return "join";
    case FrameKind::kMembership: return "membership";
    case FrameKind::kVote: return "vote";
    case FrameKind::kDecision: return "decision";
    case FrameKind::kRequest: return "request";
    case FrameKind::kBody: return "body";
    case FrameKind::kCancel: return "cancel";
    case FrameKind::kPieces: return "pieces";
    case FrameKind::kRankViews: return "rank views";
    case FrameKind::kLeaseOpen: return "lease open";
    case FrameKind::kLeaseDone: return "lease done";
    case FrameKind::kLeaseCancel: return "lease cancel";
    case FrameKind::kLeaseOffer: return "lease offer";
    case FrameKind::kLeaseConfirmed: return "lease confirmed";
    case FrameKind::kLeaseRefused: return "lease refused";
  }
  return "unknown";
}

std::string encode_frame(FrameKind kind, Epoch epoch, std::string_view payload) {
  assert(payload.size() <= kMaxPayloadBytes);
  Header h{kMagic, kProtocolVersion, static_cast<uint16_t>(kind), epoch.value, static_cast<uint32_t>(payload.size()),
           0};
  std::string bytes(kFrameHeaderBytes + payload.size(), '\0');
  std::memcpy(bytes.data(), &h, sizeof h);
  std::copy(payload.begin(), payload.end(), bytes.begin() + sizeof h);
  return bytes;
}

Result<std::optional<Frame>> FrameDecoder::next() {
  const size_t available = buffer_.size() - consumed_;
  if (available < kFrameHeaderBytes) return std::optional<Frame>{};
  Header h;
  std::memcpy(&h, buffer_.data() + consumed_, sizeof h);
  MANTA_TRY(check(h));
  if (available < kFrameHeaderBytes + h.length) return std::optional<Frame>{};
  Frame frame{static_cast<FrameKind>(h.kind), Epoch{h.epoch}, buffer_.substr(consumed_ + kFrameHeaderBytes, h.length)};
  consumed_ += kFrameHeaderBytes + h.length;
  // Forget what was read once it outweighs what was not: every byte is moved at most once.
  if (consumed_ * 2 > buffer_.size()) {
    buffer_.erase(0, consumed_);
    consumed_ = 0;
  }
  return std::optional<Frame>(std::move(frame));
}

}  // namespace manta
