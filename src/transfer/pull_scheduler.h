// The scheduler half of the connectors that pull (NixlConnector, SharedMemoryConnector): reads kv_transfer_params,
// says what is fetched and what is offered.
#pragma once

#include <memory>
#include <string>

#include "transfer/kv_connector.h"

namespace manta::transfer {

enum class KvRole : uint8_t { kProducer, kConsumer, kBoth };

struct PullSchedulerOptions {
  std::string engine_id;  // as the side channel tells it
  std::string host;       // of the side channel
  int port = 0;
  KvRole role = KvRole::kBoth;
  int block_size = 64;
};

std::unique_ptr<KvConnectorScheduler> make_pull_scheduler(PullSchedulerOptions options);

}  // namespace manta::transfer
