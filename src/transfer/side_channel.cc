#include "transfer/side_channel.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/pack.h"

namespace manta::transfer {

static auto fields(ReaderHello& m) {
  return std::tie(m.engine_id, m.compatibility);
}
static auto fields(OwnerWelcome& m) {
  return std::tie(m.engine_id, m.compatibility, m.num_blocks, m.metadata);
}
static auto fields(LeaseOpen& m) {
  return std::tie(m.pull, m.key, m.num_readers, m.wait);
}
static auto fields(LeaseDone& m) {
  return std::tie(m.pull, m.generation, m.num_bytes);
}
static auto fields(LeaseCancel& m) {
  return std::tie(m.pull);
}
static auto fields(LeaseMessage& m) {  // the kind is the frame's, the connection is the one it came by
  return std::tie(m.reader.pull, m.generation, m.blocks, m.num_tokens, m.final, m.reason);
}

std::string difference(const Compatibility& ours, const Compatibility& theirs) {
  for (const auto& [key, value] : ours) {
    const auto it = std::ranges::find_if(theirs, [&key = key](const auto& entry) { return entry.first == key; });
    const std::string_view other = it == theirs.end() ? "missing" : std::string_view(it->second);
    if (other != value) return fmt::format("{} is {} here and {} there", key, value, other);
  }
  return "";
}

std::string encode(const ReaderHello& m) {
  return pack_message(m);
}
std::string encode(const OwnerWelcome& m) {
  return pack_message(m);
}
std::string encode(const LeaseOpen& m) {
  return pack_message(m);
}
std::string encode(const LeaseDone& m) {
  return pack_message(m);
}
std::string encode(const LeaseCancel& m) {
  return pack_message(m);
}
std::string encode(const LeaseMessage& m) {
  return pack_message(m);
}
Result<ReaderHello> decode_reader_hello(std::string_view p) {
  return unpack_message<ReaderHello>(p, "reader hello");
}
Result<OwnerWelcome> decode_owner_welcome(std::string_view p) {
  return unpack_message<OwnerWelcome>(p, "owner welcome");
}
Result<LeaseOpen> decode_lease_open(std::string_view p) {
  return unpack_message<LeaseOpen>(p, "lease open");
}
Result<LeaseDone> decode_lease_done(std::string_view p) {
  return unpack_message<LeaseDone>(p, "lease done");
}
Result<LeaseCancel> decode_lease_cancel(std::string_view p) {
  return unpack_message<LeaseCancel>(p, "lease cancel");
}
Result<LeaseMessage> decode_lease_message(LeaseMessage::Kind kind, std::string_view p) {
  MANTA_ASSIGN(LeaseMessage m, unpack_message<LeaseMessage>(p, "lease"));
  m.kind = kind;
  return m;
}

}  // namespace manta::transfer
