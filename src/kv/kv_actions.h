// What a KV connector's scheduler half tells its worker half each step, and what comes back. Values that ride in
// StepPlan and StepResult, so that the two halves may live in different threads or processes.
#pragma once

#include <string>
#include <vector>

#include "base/ids.h"

namespace manta::kv {

// Blocks to fill from elsewhere or to offer to a peer, for one request.
struct KvAction {
  RequestId request;
  uint64_t generation = 0;      // the connector's own count
  std::vector<BlockId> blocks;  // local block ids, in sequence order
  int num_tokens = 0;           // of the sequence, valid in them or wanted
  int connector = 0;            // which child of a MultiConnector
  std::string remote;           // the connector's own words for the peer (msgpack); opaque to everyone else
};

struct KvActions {
  std::vector<KvAction> opens;  // a waiting request will want this: keep it with the peer until its load or cancel
  std::vector<KvAction> loads;  // start filling; done when the id comes back in KvProgress::received
  std::vector<KvAction> saves;  // offer; done when the id comes back in KvProgress::sent
  std::vector<RequestId> cancels;
  // The step they come with must not begin before they have: it reads what they fill, or writes where a peer reads.
  bool before_step = false;
  bool empty() const { return opens.empty() && loads.empty() && saves.empty() && cancels.empty(); }
};

// What a worker half has done since it started; only num_leases goes down again.
struct TransferCounters {
  uint64_t bytes_received = 0;     // read from peers and used
  uint64_t bytes_sent = 0;         // peers said that they have them
  uint64_t num_failed = 0;         // loads that did not come
  uint64_t num_expired = 0;        // leases that ended because nobody came, or the reader fell silent
  uint64_t num_refused_stale = 0;  // readers that were too late
  int32_t num_leases = 0;          // hand-offs alive now
};

struct KvProgress {
  struct Failure {
    RequestId request;
    int num_valid_tokens = 0;  // what may still be used; the rest is recomputed or the request fails, by policy
    std::string reason;        // empty: nothing went wrong, the peer had no more than that
  };
  std::vector<RequestId> received;
  std::vector<RequestId> sent;
  std::vector<Failure> failed;
  TransferCounters counters;
  bool empty() const { return received.empty() && sent.empty() && failed.empty(); }
};

}  // namespace manta::kv
