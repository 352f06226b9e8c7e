// Any bytes on an internal port: frames, then the message each kind carries. An error is fine; a crash, a hang or an
// allocation out of proportion is not. What decodes must encode again to the same bytes.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "api/relay/messages.h"
#include "base/frame.h"
#include "cluster/messages.h"
#include "engine/messages.h"

namespace {

template <typename Decode>
void round_trip(Decode decode, std::string_view payload) {
  const auto once = decode(payload);
  if (!once.ok()) return;
  const std::string bytes = encode(*once);
  const auto twice = decode(bytes);
  if (!twice.ok() || encode(*twice) != bytes) std::abort();
}

void decode_every_message(std::string_view payload) {
  using namespace manta;  // NOLINT
  round_trip(engine::decode_hello, payload);
  round_trip(engine::decode_welcome, payload);
  round_trip(engine::decode_submit, payload);
  round_trip(engine::decode_abort, payload);
  round_trip(engine::decode_outputs, payload);
  round_trip(engine::decode_stale, payload);
  round_trip(api::decode_relay_hello, payload);
  round_trip(api::decode_relay_request, payload);
  round_trip(api::decode_relay_body, payload);
  round_trip(api::decode_relay_cancel, payload);
  round_trip(api::decode_rank_views, payload);
  (void)api::decode_pieces(payload, [](const api::Piece&) {});
  round_trip(cluster::decode_join, payload);
  round_trip(cluster::decode_heartbeat, payload);
  round_trip(cluster::decode_membership, payload);
  round_trip(cluster::decode_refuse, payload);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  manta::FrameDecoder decoder;
  // In two pieces, so that the cut falls anywhere.
  const size_t cut = size == 0 ? 0 : data[0] % size;
  decoder.feed(bytes.substr(0, cut));
  (void)decoder.next();
  decoder.feed(bytes.substr(cut));
  for (;;) {
    const auto frame = decoder.next();
    if (!frame.ok() || !frame->has_value()) break;
    decode_every_message((*frame)->payload);
  }
  decode_every_message(bytes);  // payloads the fuzzer need not wrap first
  return 0;
}
