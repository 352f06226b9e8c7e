// What two connectors say to each other on their side channel: small frames, never cache rows.
//
//   reader                                    owner
//   kHello {who, what the caches are like} ->
//                                          <- kWelcome {who, how to read} or kRefuse {which key differs}
//   kLeaseOpen                             ->
//                                          <- kLeaseOffer, again whenever it has grown
//   (reads)
//   kLeaseDone                             ->
//                                          <- kLeaseConfirmed: what was read is valid
//   kLeaseCancel: at any time; kLeaseRefused: instead of an offer or confirmation, at any time
//   kHeartbeat, both ways: I live, and so do my leases
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "transfer/lease_table.h"
#include "transfer/pull_table.h"

namespace manta::transfer {

// What must be equal on both sides for one's rows to be the other's, by name, for the message when they are not.
using Compatibility = std::vector<std::pair<std::string, std::string>>;

// Empty: they fit. Else the first key that differs, with both values.
std::string difference(const Compatibility& ours, const Compatibility& theirs);

struct ReaderHello {
  std::string engine_id;
  Compatibility compatibility;
};
struct OwnerWelcome {
  std::string engine_id;
  Compatibility compatibility;
  int32_t num_blocks = 0;
  std::string metadata;  // the mover's
};
struct LeaseOpen {
  uint64_t pull = 0;
  std::string key;
  int32_t num_readers = 1;
  bool wait = false;
};
struct LeaseDone {
  uint64_t pull = 0;
  uint64_t generation = 0;
  uint64_t num_bytes = 0;
};
struct LeaseCancel {
  uint64_t pull = 0;
};

std::string encode(const ReaderHello&);
std::string encode(const OwnerWelcome&);
std::string encode(const LeaseOpen&);
std::string encode(const LeaseDone&);
std::string encode(const LeaseCancel&);
std::string encode(const LeaseMessage&);
Result<ReaderHello> decode_reader_hello(std::string_view payload);
Result<OwnerWelcome> decode_owner_welcome(std::string_view payload);
Result<LeaseOpen> decode_lease_open(std::string_view payload);
Result<LeaseDone> decode_lease_done(std::string_view payload);
Result<LeaseCancel> decode_lease_cancel(std::string_view payload);
Result<LeaseMessage> decode_lease_message(LeaseMessage::Kind kind, std::string_view payload);

}  // namespace manta::transfer
