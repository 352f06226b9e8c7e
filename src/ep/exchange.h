// Small messages between the ranks of a group over their expert transport, so that what a device's ranks agree on
// between steps needs no second network. A message travels as rows, sent to the first expert of every rank.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/lane.h"
#include "base/result.h"
#include "ep/expert_transport.h"

namespace manta::ep {

// A configured transport and what it was configured with.
struct Exchange {
  ExpertTransport* transport = nullptr;
  Lane* lane = nullptr;
  MoeShape shape;
  int rank = 0, size = 1;
  int max_num_tokens = 0;  // rows of a round
};

// Every rank's bytes, by rank. Collective, between steps, on the thread that runs them; all messages have one length.
// Needs a transport that hands rows of an expert over by source rank and token, as those in host memory do.
Result<std::vector<std::string>> all_gather(const Exchange& exchange, std::string_view mine);

}  // namespace manta::ep
