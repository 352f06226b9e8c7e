// The small identities that cross rooms. Plain integers where arithmetic is done on them (blocks, tokens, slots),
// wrapped where mixing two up would be a silent bug (Epoch, RequestId).
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>

namespace manta {

using TokenId = int32_t;  // an id of the model's vocabulary
using BlockId = int32_t;  // a KV cache block of this engine, [0, num_blocks)
using SlotId = int32_t;   // a running request's seat on the device, [0, max_num_seqs)
using StepId = uint64_t;  // counts the steps of one engine, from 1

// Version of a group's membership. Every EP group, step agreement, expert map and wire frame carries one; a message
// of another epoch is answered with the current one, never dropped in silence. 0 = not a member of any group yet.
struct Epoch {
  uint64_t value = 0;
  auto operator<=>(const Epoch&) const = default;
};

// Names a request inside one deployment: unique per api process start, never reused.
struct RequestId {
  uint64_t client = 0;  // which front-end event loop; drawn at random when it connects
  uint64_t serial = 0;  // counts that loop's requests, from 1
  auto operator<=>(const RequestId&) const = default;
};

std::string to_string(RequestId id);  // "c1f2e3-17", for logs

}  // namespace manta

template <>
struct std::hash<manta::RequestId> {
  size_t operator()(const manta::RequestId& id) const noexcept {
    return std::hash<uint64_t>{}(id.client * 0x9e3779b97f4a7c15ULL ^ id.serial);
  }
};
