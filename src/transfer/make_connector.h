// From --kv-transfer-config to the two halves of a connector.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "transfer/exchange.h"
#include "transfer/kv_connector.h"

namespace manta::transfer {

struct ConnectorConfig {
  std::string kv_connector;  // NixlConnector, SharedMemoryConnector, DecodeBenchConnector or MultiConnector
  std::string kv_role;       // kv_producer, kv_consumer or kv_both
  std::string extra_config;  // kv_connector_extra_config: a JSON object, or empty
  std::string engine_id;     // of the deployment; empty: drawn
  int rank = 0;              // DP rank: added to the engine's name and to the port
  std::string host = "127.0.0.1";
  int port = 0;  // of the side channel; 0: any free one
  std::chrono::milliseconds unclaimed{30000};
  std::string nixl_lib;  // path of libnixl_capi.so; empty: looked for
  int block_size = 64;
  Compatibility compatibility;  // of the model and its numerics
};

struct Connector {
  std::unique_ptr<KvConnectorScheduler> scheduler;
  std::unique_ptr<KvConnectorWorker> worker;
  std::string description;  // JSON: connector, engine_id, host, port; what a router must know to send a pull here
  bool needs_shared_cache = false;
};

// kInvalidArgument names a key that is not known or has a wrong value.
Result<Connector> make_connector(const ConnectorConfig& config);

}  // namespace manta::transfer
