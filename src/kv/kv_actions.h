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
  uint64_t generation = 0;      // of the lease; a reader with another generation is refused
  std::vector<BlockId> blocks;  // local block ids, in sequence order
  int num_tokens = 0;           // valid tokens in them
  std::string remote;           // the connector's own words for the peer (msgpack); opaque to everyone else
};

struct KvActions {
  std::vector<KvAction> loads;  // start filling; done when the id comes back in KvProgress::received
  std::vector<KvAction> saves;  // offer; done when the id comes back in KvProgress::sent
  std::vector<RequestId> cancels;
  bool empty() const { return loads.empty() && saves.empty() && cancels.empty(); }
};

struct KvProgress {
  struct Failure {
    RequestId request;
    int num_valid_tokens = 0;  // what may still be used; the rest is recomputed or the request fails, by policy
    std::string reason;
  };
  std::vector<RequestId> received;
  std::vector<RequestId> sent;
  std::vector<Failure> failed;
  bool empty() const { return received.empty() && sent.empty() && failed.empty(); }
};

}  // namespace manta::kv
